"""What all figures share: the palette, the bare axes, and a file that is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct also for colour-blind readers; markers and dashes say it a second time.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
CURVES = {
    "c_acc": ("C-Acc", BLUE, "o", "-"),
    "asr": ("ASR", ORANGE, "s", "--"),
    "r_acc": ("R-Acc", GREEN, "^", ":"),
}

MORE = ("#CC79A7", "#E69F00", "#56B4E9", "#999999")  # for the ASR of further triggers
MORE_MARKERS = ("v", "D", "P", "X")
Curve = tuple[str, str, str, str]


def curves_of(entries: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """metric -> (title, colour, marker, line) of what the entries hold: `CURVES`, and the ASR of further triggers."""
    named = dict.fromkeys(key for entry in entries for key in entry if key.startswith("asr/"))
    more = {
        key: (f"ASR {key.removeprefix('asr/')}", MORE[place % len(MORE)], MORE_MARKERS[place % len(MORE)], "--")
        for place, key in enumerate(named)
    }
    return {**CURVES, **more}


def save(figure: Figure, path: Path) -> Path:
    """Write the figure in the format of the suffix (.png, .svg, .pdf); returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(part, format=path.suffix.removeprefix(".") or "png")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def plain(axes: Axes) -> None:
    """Axes without a box, with faint lines to read heights by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)


def percent(axes: Axes, top: float) -> None:
    """A vertical axis from 0 to 100 percent with room for markers and labels up to `top`."""
    axes.set_ylim(-3, top)
    axes.set_yticks(range(0, 101, 20))
    plain(axes)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Label heights for ascending `values`: near them, `gap` apart, all in [low, high] if they fit there."""
    heights = list(values)
    for _ in range(100):
        for number, (lower, upper) in enumerate(pairwise(heights)):
            push = max(0.0, gap - (upper - lower)) / 2
            heights[number], heights[number + 1] = lower - push, upper + push
        heights = [min(max(height, low), high) for height in heights]
    return heights
