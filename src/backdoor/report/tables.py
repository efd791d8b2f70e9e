"""Rows of records as tables: one row a run, means over seeds, and attack x defense as CSV, Parquet and Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from backdoor.report.records import FOUND, METRICS, Row

TITLES = {"asr_worst": "ASR", "c_acc": "C-Acc"}  # ASR: of the strongest trigger, where an attack has several
TEXT = ("data", "model", "attack", "ratio_of", "goal", "defense", "run", "started", "commit", "source", "settings")
WHOLE = ("seed", "ram", "gpu")
COLUMNS = (
    *("data", "model", "attack", "ratio", "ratio_of", "goal", "defense", "seed", *METRICS, "victim_c_acc"),
    *("victim_asr", *FOUND, "seconds", "ram", "gpu", "started", "commit", "source", "settings", "run"),
)
CELL = ("data", "model", "attack", "ratio", "ratio_of", "goal", "defense")
MEASURED = (*METRICS, "seconds")


def frame_of(rows: Sequence[Row], out: Path) -> pl.DataFrame:
    """One row a run, with `run`: its folder as seen from `out`, where the report will lie."""
    whole = {name: pl.Int64() for name in WHOLE}
    kinds = {name: pl.String() if name in TEXT else whole.get(name, pl.Float64()) for name in COLUMNS}
    here = out.resolve()
    placed = [{**row, "run": Path(os.path.relpath(row["folder"], here)).as_posix()} for row in rows]
    return pl.DataFrame([[row[name] for name in COLUMNS] for row in placed], schema=kinds, orient="row")


def cells_of(runs: pl.DataFrame) -> pl.DataFrame:
    """What was run but for the seed, in the runs' order, with mean and standard deviation of what was measured.

    Returns:
        CELL; `runs`, how many; `mixed`, whether they differ in more than their seed; and `<name>_mean` and
        `<name>_std` (n - 1 in the denominator, null for one run) for each of MEASURED, over the runs that have it.
    """
    numbers = [
        *(pl.col(name).mean().alias(f"{name}_mean") for name in MEASURED),
        *(pl.col(name).std(ddof=1).alias(f"{name}_std") for name in MEASURED),
    ]
    counts = [pl.len().alias("runs"), (pl.col("settings").n_unique() > 1).alias("mixed")]
    return runs.group_by(CELL, maintain_order=True).agg(*counts, *numbers)


def setting_text(cell: Mapping[str, Any]) -> str:
    """The poisoning ratio, what it is a share of unless that is the train set, and a goal that is not one class."""
    ratio = [] if cell["ratio"] is None else [f"{cell['ratio']:g}"]
    base = [f"({cell['ratio_of']})"] if ratio and cell["ratio_of"] not in (None, "train") else []
    return " ".join([*ratio, *base, *goal_text(cell)])


def goal_text(cell: Mapping[str, Any]) -> list[str]:
    """The word for a goal that is not the usual one, else nothing."""
    return [str(cell["goal"])] if cell["goal"] not in (None, "", "targeted") else []


def spread_text(cell: Mapping[str, Any], metric: str) -> str:
    """`97.5 ± 0.4` in percent; without the second half for one run, and a dash for what was not measured."""
    mean, std = cell[f"{metric}_mean"], cell[f"{metric}_std"]
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}") + ("*" if cell["mixed"] else "")


def markdown(runs: pl.DataFrame, cells: pl.DataFrame) -> str:
    """The pivot tables: for each data set and model ASR and C-Acc, attacks down and defenses across."""
    lines = [
        "# Results",
        "",
        f"{runs.height:,} runs. Percent, mean ± standard deviation over seeds; a dash: not run or not known; "
        "ASR is that of the strongest trigger; "
        "a star: the runs of that cell differ in more than their seed.",
    ]
    for (data, model), panel in cells.partition_by("data", "model", as_dict=True, maintain_order=True).items():
        for metric, title in TITLES.items():
            lines += ["", f"## {title}: {plain(data)}, {plain(model)}", "", *pivot(panel.to_dicts(), metric)]
    return "\n".join(lines) + "\n"


def pivot(cells: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """The lines of one Markdown table."""
    defenses = list(dict.fromkeys(str(cell["defense"]) for cell in sorted(cells, key=by_defense)))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        rows.setdefault((str(cell["attack"]), setting_text(cell)), {})[cell["defense"]] = spread_text(cell, metric)
    lines = [["attack", "ratio", *defenses], ["---", "---", *("---:" for _ in defenses)]]
    lines += [[*name, *(found.get(defense, "-") for defense in defenses)] for name, found in rows.items()]
    return [f"| {' | '.join(plain(text) for text in line)} |" for line in lines]


def by_defense(cell: Mapping[str, Any]) -> tuple[bool, str]:
    """Sorts by defense; none at all comes first."""
    return (cell["defense"] != "none", str(cell["defense"]))


def plain(text: object) -> str:
    """Text that Markdown, and the HTML made of it, show as it is."""
    shown = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    # An underscore inside a word means nothing to Markdown.
    return re.sub(r"([\\`*\[\]|]|\b_|_\b|(?<!\w)_)", r"\\\1", shown)


def write_tables(runs: pl.DataFrame, cells: pl.DataFrame, out: Path) -> list[Path]:
    """Write runs.csv, runs.parquet, means.csv and report.md into `out`; the files."""
    files = [out / name for name in ("runs.csv", "runs.parquet", "means.csv", "report.md")]
    runs.write_csv(files[0])
    runs.write_parquet(files[1])
    cells.write_csv(files[2])
    files[3].write_text(markdown(runs, cells), encoding="utf-8")
    return files
