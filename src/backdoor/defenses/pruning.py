"""What the pruning defenses share: held-out trusted rows, and how much clean accuracy may be lost on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count as count_from
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from backdoor.data.loader import mix
from backdoor.data.reserve import stratified
from backdoor.errors import UserError, suggest
from backdoor.figures.draw import BLUE, GREEN, GREY, ORANGE, plain, save
from backdoor.state import Split, State

DROPS = ("absolute", "relative")


def check_share(setting: str, value: Any) -> None:
    """Raises UserError for anything but a number between 0 and 1, both excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"{setting}={value}: expected a share between 0 and 1, for instance 0.2")


def check_drop(max_drop: Any, drop: str) -> None:
    """Raises UserError for a drop of clean accuracy that is no number in [0, 1), or of no known kind."""
    if drop not in DROPS:
        raise UserError(f"drop={drop}: {suggest(str(drop), DROPS)}")
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop < 1:
        raise UserError(f"max_drop={max_drop}: expected a share of at least 0 and below 1, for instance 0.04")


def lowest_accepted(before: float, max_drop: float, drop: str) -> float:
    """The clean accuracy (a fraction) that must be kept, of `before`.

    `absolute` counts points (Liu et al., RAID 2018: 4 %), `relative` shares of `before` (BackdoorBench: 10 %).
    """
    return before - max_drop if drop == "absolute" else before * (1 - max_drop)


def rows_for(max_drop: float) -> int:
    """The fewest rows on which a drop that small can be seen: below them one row alone is more than it."""
    return math.ceil(1 / max_drop - 1e-9) if max_drop > 0 else 1


def held_out(rows: int, share: float, least: int) -> int | None:
    """How many of the trusted rows are held out; None if that is fewer than `least`, or all."""
    count = round(share * rows)
    return count if least <= count < rows else None


def rows_to_hold_out(share: float, least: int) -> int:
    """The fewest trusted rows of which `share` in (0, 1) is at least `least`, with some left."""
    first = int(max((least - 1) / share, 0.5 / (1 - share) - 1))  # nothing below it is enough
    return next(rows for rows in count_from(first) if held_out(rows, share, least) is not None)


def hold_out(reserved: Split, share: float, seed: int, *, least: int = 1) -> tuple[Split, Split]:
    """(the rest, the held-out part) of the trusted rows: disjoint, drawn by the seed, stratified by class.

    Args:
        share: of the rows that are held out, in (0, 1).
        least: rows that the held-out part must have.

    Raises:
        UserError: too few rows for that, or none left for the rest.
    """
    count = held_out(len(reserved), share, least)
    if count is None:
        count = round(share * len(reserved))
        raise UserError(
            f"reserved: {len(reserved)} trusted rows and validation={share} hold out {count}; expected at least "
            f"{least} and some left; set more rows with reserved=, or another validation or max_drop"
        )
    held = stratified(reserved.labels, count, torch.Generator().manual_seed(mix(seed, 0x401D)))
    rest = torch.ones(len(reserved), dtype=torch.bool)
    rest[held] = False
    return reserved.take(rest.nonzero().flatten()), reserved.take(held)


def pruning_figure(state: State, entry: Mapping[str, Any], path: Path, *, xlabel: str, title: str) -> Path:
    """Clean accuracy on the held-out rows against how much is pruned, with what was chosen; ASR for the record.

    Args:
        state: its finding `pruning_curve` holds `x` and `c_acc` (lists of equally many numbers, accuracies as
            fractions), `lowest` (the least that is accepted, or None) and `chosen` (one of `x`, or None).
        entry: what the evaluator measured; its `tried`, where it is there, has the `asr` at each of `x`, on test
            images that the choice never saw.
        path: .png, .svg or .pdf file.
    """
    curve = state.findings["pruning_curve"]
    figure = Figure(figsize=(6.0, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(
        curve["x"],
        [100 * value for value in curve["c_acc"]],
        "o-",
        color=BLUE,
        ms=4,
        lw=1.8,
        label="C-Acc, held-out trusted images",
    )
    tried = entry.get("tried", [])
    if tried and all("asr" in one for one in tried):
        values = [100 * one.get("asr_worst", one["asr"]) for one in tried]
        axes.plot(curve["x"], values, "s-", color=GREEN, ms=3, lw=1, label="ASR, test images (for the record)")
    if curve["lowest"] is not None:
        axes.axhline(100 * curve["lowest"], color=GREY, ls=":", lw=1.5, label="least accepted")
    if curve["chosen"] is not None:
        axes.axvline(curve["chosen"], color=ORANGE, ls="--", lw=1.5, label="chosen")
    axes.set_ylim(-3, 103)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("%")
    axes.set_title(title, fontsize=11, parse_math=False)
    plain(axes)
    axes.legend(fontsize=9, frameon=False)
    return save(figure, path)
