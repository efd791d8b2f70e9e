"""The picture of the reversed triggers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from backdoor.figures.draw import ORANGE, save
from backdoor.figures.figures import show

COLUMNS = 5


def draw_triggers(
    masks: Tensor, patterns: Tensor, norms: Tensor, indices: Tensor, flagged: Collection[int], *, path: Path
) -> Path:
    """One strip a class: mask, pattern, mask * pattern; flagged classes in colour, with a frame and a star.

    Args:
        masks: float [0, 1] (K, 1, H, W).
        patterns: float [0, 1] (K, C, H, W), C in {1, 3}.
        norms, indices: float (K,), written above.
        flagged: classes.
        path: .png, .svg or .pdf file.
    """
    count = len(masks)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.7 * columns, 1.2 * rows + 0.4), dpi=110, layout="constrained")
    figure.suptitle("Reversed triggers: mask, pattern, mask × pattern; ★ = flagged", fontsize=11)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for label, cell in enumerate(cells):
        if label >= count:
            cell.set_axis_off()
            continue
        show(cell, strip(masks[label], patterns[label]))
        title = f"class {label}: {norms[label]:.1f} px, index {indices[label]:.1f}"
        marked = label in flagged
        cell.set_title(f"★ {title}" if marked else title, fontsize=9, color=ORANGE if marked else "black")
        if marked:
            cell.spines[:].set(visible=True, color=ORANGE, linewidth=2.5)
    return save(figure, path)


def strip(mask: Tensor, pattern: Tensor) -> np.ndarray:
    """float [0, 1] (H, 3 * W + 2 gaps, C): the three images side by side.

    Args:
        mask: (1, H, W).
        pattern: (C, H, W).
    """
    gap = torch.ones(*pattern.shape[:2], max(1, pattern.shape[2] // 16))
    parts = [mask.expand_as(pattern), gap, pattern, gap, mask * pattern]
    return torch.cat(parts, dim=2).permute(1, 2, 0).numpy()
