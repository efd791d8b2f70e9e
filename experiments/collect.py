"""Collect finished runs into one Markdown table: `python experiments/collect.py RUN_FOLDER...`.

A folder is a run's own, or a sweep's (its jobs are taken). Percent; a dash for what a run does not know.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = {"c_acc": "C-Acc", "c_acc_non_target": "C-Acc non-target", "asr": "ASR", "r_acc": "R-Acc", "der": "DER"}


def results(folders: list[str]) -> list[Path]:
    """Every result.json in or one level below the folders, sorted."""
    found: list[Path] = []
    for folder in map(Path, folders):
        own = folder / "result.json"
        found += [own] if own.exists() else sorted(folder.glob("*/result.json"))
    return found


def percent(value: float | None) -> str:
    """`93.9`, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def rows(path: Path) -> list[str]:
    """One line a stage."""
    result = json.loads(path.read_text())
    lines = []
    for stage in result["stages"]:
        values = [percent(stage.get(name)) for name in COLUMNS]
        found = stage.get("detection", {})
        values += [percent(found.get("precision")), f"{found['auroc']:.3f}" if "auroc" in found else "-"]
        values += [f"{stage['seconds']:.0f}"]
        name = "control (lr = 0)" if stage.get("control") else stage["name"]
        lines.append(f"| {result['attack']} | {result['seed']} | {name} | {' | '.join(values)} |")
    return lines


def main() -> None:
    """Print the table."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    heads = ["attack", "seed", "stage", *COLUMNS.values(), "isolation precision", "AUROC", "seconds"]
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    for path in results(sys.argv[1:]):
        print("\n".join(rows(path)))


if __name__ == "__main__":
    main()
