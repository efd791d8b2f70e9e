"""The pictures of a run. No pyplot: each figure is its own object and leaves no state behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from backdoor.figures.curves import epoch_curves, stage_curves
from backdoor.figures.draw import BLUE, GREY, ORANGE, plain, save

__all__ = ["epoch_curves", "loss_histogram", "stage_curves", "trigger_gallery"]

AMPLIFY = (64, 32, 16, 8, 4, 2, 1)


def trigger_gallery(
    clean: Tensor,
    triggered: Tensor,
    path: Path,
    *,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    classes: Sequence[str] | None = None,
    columns: int = 8,
) -> Path:
    """Rows clean, triggered and residual (signed, amplified, mid-grey = unchanged), one image a column.

    Args:
        clean: uint8 (N, C, H, W) or float in [0, 1], C in {1, 3}, N >= 1.
        triggered: the same images with the trigger, same shape and dtype.
        path: .png, .svg or .pdf file.
        labels: int64 (N,), true labels, written above; absent if None.
        targets: int64 (N,), the attacker's labels, written below; absent if None.
        classes: class names by label; the numbers if None.
        columns: the first so many images are shown.

    Raises:
        ValueError: no images, or shapes or dtypes that differ.
    """
    if clean.shape != triggered.shape or clean.dtype != triggered.dtype or clean.ndim != 4 or not len(clean):
        raise ValueError(
            "trigger_gallery: expected two equal (N, C, H, W) stacks, N > 0, "
            f"got {clean.dtype} {tuple(clean.shape)} and {triggered.dtype} {tuple(triggered.shape)}"
        )
    before, after, factor, residual = difference(clean[:columns], triggered[:columns])
    rows = {"clean": before, "triggered": after, f"residual ×{factor}": residual}
    shown = len(before)
    figure = Figure(figsize=(1.15 * max(shown, 5) + 0.4, 4.1), dpi=150, layout="constrained")
    figure.suptitle(f"Residual (triggered − clean) amplified ×{factor}; mid-grey = no change", fontsize=11)
    grid = figure.subplots(3, shown, squeeze=False)
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name, fontsize=11)
        for cell, image in zip(axes, images, strict=True):
            show(cell, image)
    for column in range(shown):
        if labels is not None:
            caption(grid[0][column].set_title, int(labels[column]), classes)
        if targets is not None:
            caption(grid[2][column].set_xlabel, int(targets[column]), classes, arrow="→ ")
    return save(figure, path)


def loss_histogram(
    scores: Tensor,
    poisoned: Tensor | None,
    flagged: Tensor | None,
    path: Path,
    title: str,
    xlabel: str = "score (higher = more suspect)",
) -> Path:
    """Histogram of a score over the training rows, clean against poisoned, with a logarithmic count axis.

    Args:
        scores: float (N,), higher = more suspect; rows that are not finite are left out and counted.
        poisoned: bool (N,), or None if unknown: one histogram of all rows.
        flagged: bool (N,), the isolated rows. If they are the highest scores, the threshold is drawn; else
            their outline.
        path: .png, .svg or .pdf file.
        title: above the axes.
        xlabel: what the score is.

    Raises:
        ValueError: no finite score, or lengths that differ.
    """
    values = scores.detach().cpu().double().flatten()
    for name, mask in (("poisoned", poisoned), ("flagged", flagged)):
        if mask is not None and mask.shape != values.shape:
            raise ValueError(f"{name}: expected bool ({len(values)},), got {tuple(mask.shape)}")
    finite = values.isfinite()
    if not finite.any():
        raise ValueError("scores: expected at least one finite value, got none")
    figure = Figure(figsize=(7.0, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    low, high = float(values[finite].min()), float(values[finite].max())
    bins = np.linspace(low, high if high > low else low + 1e-6, 61).tolist()
    for name, mask, colour, hatch in _populations(poisoned, finite):
        if mask.any():
            part, label = values[mask].numpy(), f"{name} ({int(mask.sum()):,})"
            style: dict[str, Any] = {
                "histtype": "stepfilled",
                "color": colour,
                "edgecolor": colour,
                "hatch": hatch,
            }
            axes.hist(part, bins=bins, alpha=0.45, label=label, **style)
    if flagged is not None:
        _mark_flagged(axes, values, flagged.cpu().bool() & finite, finite, bins)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    lost = int((~finite).sum())
    axes.set_xlabel(f"{xlabel}{f'; {lost:,} not finite' if lost else ''}")
    axes.set_ylabel("training images")
    axes.set_title(title, fontsize=11, parse_math=False)
    plain(axes)
    axes.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
    return save(figure, path)


def difference(clean: Tensor, triggered: Tensor) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Both stacks as float (N, H, W, C) in [0, 1], the factor of amplification, and the residual around mid-grey."""
    before, after = _unit(clean), _unit(triggered)
    factor = _amplification(after - before)
    return before, after, factor, (0.5 + factor * (after - before)).clip(0, 1)


def _unit(images: Tensor) -> np.ndarray:
    """float (N, H, W, C) in [0, 1]."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    return (images.detach().cpu().float() / scale).permute(0, 2, 3, 1).numpy()


def _amplification(residual: np.ndarray) -> int:
    """The largest factor that clips at most 1 % of the changed values (warps have a few large ones), else 1."""
    changes = np.abs(residual[residual != 0])
    usual = float(np.quantile(changes, 0.99)) if changes.size else 0.0
    return next((factor for factor in AMPLIFY if 0 < factor * usual <= 0.5), 1)


def show(axes: Axes, image: np.ndarray) -> None:
    """One image, float (H, W, C) in [0, 1], on bare axes."""
    picture = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def caption(write: Any, label: int, classes: Sequence[str] | None, arrow: str = "") -> None:
    """A class name of bounded length, through one of the axes' setters."""
    name = classes[label] if classes is not None else str(label)
    text = name if len(name) <= 12 else f"{name[:11]}…"
    write(f"{arrow}{text}", fontsize=9, parse_math=False)


def _populations(poisoned: Tensor | None, finite: Tensor) -> list[tuple[str, Tensor, str, str]]:
    if poisoned is None:
        return [("all", finite, GREY, "")]
    mask = poisoned.cpu().bool()
    return [("clean", finite & ~mask, BLUE, ""), ("poisoned", finite & mask, ORANGE, "////")]


def _mark_flagged(axes: Axes, values: Tensor, flagged: Tensor, finite: Tensor, bins: list[float]) -> None:
    if not flagged.any():
        return
    count, rest = int(flagged.sum()), finite & ~flagged
    threshold = float(values[flagged].min())
    if not rest.any() or float(values[rest].max()) <= threshold:
        axes.axvline(threshold, color="black", lw=1.5, ls="--", label=f"threshold ({count:,} isolated)")
        return
    outline = values[flagged].numpy()
    axes.hist(outline, bins=bins, histtype="step", color="black", lw=1.3, label=f"isolated ({count:,})")
