"""How the metrics move: over the stages of a run, and over its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from backdoor.figures.draw import GREY, Curve, curves_of, percent, plain, save, spread
from backdoor.metrics.names import shown_name


def stage_curves(stages: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """C-Acc, ASR and R-Acc after each stage, the points labelled in percent.

    Args:
        stages: `stages` of result.json, fractions; an absent metric leaves a gap. A stage with a true
            `control` stands apart: a hollow marker that the line passes by.
        path: .png, .svg or .pdf file.

    Raises:
        ValueError: no stages.
    """
    if not stages:
        raise ValueError("stages: expected at least one, got none")
    figure = Figure(figsize=(max(4.5, 1.5 * len(stages) + 1.5), 3.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    controls = np.array([bool(stage.get("control")) for stage in stages])
    places = np.arange(len(stages))
    known = curves_of(stages)
    for key, (name, colour, marker, line) in known.items():
        values = np.array([100 * float(stage.get(key, np.nan)) for stage in stages])
        chain = ~controls & np.isfinite(values)
        if not np.isfinite(values).any():
            continue
        axes.plot(places[chain], values[chain], line, color=colour, marker=marker, lw=2, ms=7, label=name)
        axes.plot(places[controls], values[controls], marker, color=colour, mfc="white", ms=7, mew=1.5)
    for place, stage in enumerate(stages):
        _label_points(axes, place, stage, known)
    axes.set_xticks(places, [shown_name(stage, "\n") for stage in stages], fontsize=10, parse_math=False)
    axes.set_xlim(-0.3, len(stages) - 0.45)
    percent(axes, top=106)
    axes.set_ylabel("share of test images (%)")
    axes.legend(fontsize=10, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return save(figure, path)


def epoch_curves(history: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Training loss above, C-Acc and ASR below, over all epochs of all stages; a band is a stage.

    Args:
        history: rows of metrics.csv in order, with `stage` and any of `loss`, `c_acc`, `asr` (numbers or
            their text; absent or empty leaves a gap). A row is an epoch.
        path: .png, .svg or .pdf file.

    Raises:
        ValueError: no rows.
    """
    if not history:
        raise ValueError("history: expected at least one row, got none")
    figure = Figure(figsize=(7.5, 4.6), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3))
    names = [str(row.get("stage", "")) for row in history]
    _line(upper, names, _column(history, "loss"), "loss", GREY, ".", "-")
    upper.set_ylabel("training loss")
    for key, (name, colour, marker, line) in curves_of(history).items():
        if key == "r_acc":
            continue
        _line(lower, names, 100 * _column(history, key), name, colour, marker, line)
    percent(lower, top=104)
    lower.set_ylabel("test images (%)")
    lower.set_xlabel("epoch, over all stages")
    lower.set_xlim(0.5, len(history) + 0.5)
    lower.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    plain(upper)
    _bands((upper, lower), names)
    if lower.get_legend_handles_labels()[0]:
        lower.legend(fontsize=9, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2)
    return save(figure, path)


def _label_points(axes: Axes, place: int, stage: Mapping[str, Any], curves: Mapping[str, Curve]) -> None:
    """Percentages to the right of a stage's points, pushed apart where the points lie together."""
    points = sorted((100 * float(stage[key]), curves[key][1]) for key in curves if key in stage)
    heights = spread([value for value, _ in points], gap=5.5, low=1, high=101)
    for (value, colour), height in zip(points, heights, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (place, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )


def _column(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    cells = (row.get(key, "") for row in history)
    return np.array([float(cell) if cell not in ("", None) else np.nan for cell in cells])


def _line(
    axes: Axes, names: Sequence[str], values: np.ndarray, label: str, colour: str, marker: str, line: str
) -> None:
    """A curve that breaks between stages, for they train different things."""
    size = 4 if len(names) <= 60 else 2
    for start, end, _ in _runs(names):
        epochs = np.arange(start, end)
        known = np.isfinite(values[start:end])
        if known.any():
            shown = values[start:end][known]
            axes.plot(epochs[known] + 1, shown, line, color=colour, marker=marker, ms=size, lw=1.6, label=label)
            label = "_nolegend_"


def _bands(panels: Sequence[Axes], names: Sequence[str]) -> None:
    taken = 0.0
    for number, (start, end, name) in enumerate(_runs(names)):
        for axes in panels:
            shade = "#DDDDDD" if number % 2 else "#F6F6F6"
            axes.axvspan(start + 0.5, end + 0.5, color=shade, alpha=0.6, lw=0, zorder=0)
        middle, width = (start + end + 1) / 2, 0.013 * len(names) * len(name)
        # A name that would run into the one before it moves up a line.
        raised = number > 0 and middle - width / 2 < taken
        taken = 0.0 if raised else middle + width / 2
        transform = panels[0].get_xaxis_transform()
        height = 1.17 if raised else 1.03
        panels[0].text(middle, height, name, transform=transform, ha="center", fontsize=10, parse_math=False)


def _runs(names: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first row, row after the last, name) of each run of equal names."""
    runs, start = [], 0
    for name, rows in groupby(names):
        end = start + len(list(rows))
        runs.append((start, end, name))
        start = end
    return runs
