"""The benchmark's finished runs as one CSV file, and the tables and the picture made of it.

python experiments/benchmark_cpu/tables.py RUN...   # takes finished runs' folders into results.csv
python experiments/benchmark_cpu/tables.py          # prints the tables of README.md and draws benchmark.png

The same run again replaces its row. A row's place in a table is given by its settings: those in `TABLE` belong there,
all others are variants.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS, PUBLISHED, PICTURE = HERE / "results.csv", HERE / "published.csv", HERE / "benchmark.png"
ATTACKS = {"badnets": "BadNets", "blended": "Blended", "sig": "SIG", "wanet": "WaNet"}
DATA = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB"}
KEY = ("data", "attack", "attack_settings", "defense", "settings", "seed")
VALUES = ("c_acc", "asr", "r_acc", "der", "seconds", "poisoned", "precision", "recall", "fpr", "auroc")
FINDINGS = {
    "backdoored": "backdoored",
    "anomaly_index": "anomaly_index",
    "pruned_neurons": "pruned",
    "pruned_channels": "pruned",
}
COLUMNS = (*KEY, *VALUES, *dict.fromkeys(FINDINGS.values()), "commit", "dirty")
Row = dict[str, str]

# What the tables show of each defense; where the data set has a setting of its own, it goes before.
TABLE = {
    "none": "",
    "ft": "",
    "fp": "",
    "nad": "",
    "nc": "stages.invert.epochs=20 stages.invert.batch_size=64",
    ("gtsrb", "nc"): "stages.invert.epochs=10 stages.invert.batch_size=32",
    "anp": "stages.mask.steps=500",
    "ac": "",
    "spectral": "",
    "abl": "stages.isolate.epochs=8 stages.finetune.epochs=5",
    "dbr": "stages.warm.epochs=5 stages.repair.epochs=10",
    "dst": "stages.warm.epochs=5 stages.features.epochs=10",
    "dbd": "stages.contrast.epochs=10 stages.head.epochs=5 stages.mixmatch.epochs=5 stages.mixmatch.module.steps=150 "
    "stages.mixmatch.module.ramp=15",
    "fct": "stages.warm.epochs=5",
}
DEFENSES = [name for name in TABLE if isinstance(name, str) and name != "fct"]
# Scores of the detection tables: name -> the defense whose run has them.
SCORES = {"fct": "fct", "loss_gap": "abl", "ac": "ac", "spectral": "spectral"}


def read(path: Path) -> list[Row]:
    """The rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def record(folder: Path) -> Row:
    """One finished run as a row."""
    if not (folder / "result.json").exists():
        sys.exit(f"{folder}: expected the folder of a finished run, with result.json in it")
    result = json.loads((folder / "result.json").read_text())
    git = json.loads((folder / "environment.json").read_text())["git"]
    overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    final, stages = result["final"], result["stages"][1:]
    found: dict[str, Any] = {}
    for stage in stages:
        findings = stage.get("findings", {})
        found |= {column: findings[name] for name, column in FINDINGS.items() if name in findings}
    detection = final.get("detection", {})
    values = {name: final.get(name, detection.get(name)) for name in VALUES}
    values["seconds"] = round(sum(stage["seconds"] for stage in stages))
    values["auroc"] = next((s["detection"]["auroc"] for s in stages if "auroc" in s.get("detection", {})), None)
    row = {name: result[name] for name in ("data", "attack", "defense", "seed")} | values | found
    row |= {"settings": chosen(overrides, "defense."), "attack_settings": chosen(overrides, "attack.")}
    row |= {"commit": git["commit"][:7], "dirty": int(git["dirty"])}
    return {name: text(row.get(name)) for name in COLUMNS}


def chosen(overrides: list[str], prefix: str) -> str:
    """Those overrides that begin with the prefix, without it."""
    return " ".join(sorted(one.removeprefix(prefix) for one in overrides if one.startswith(prefix)))


def text(value: Any) -> str:
    """A cell of the file: six digits of a number, nothing for None."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def take(folders: list[Path]) -> None:
    """Runs into the file, sorted."""
    rows = {tuple(row[name] for name in KEY): row for row in read(RESULTS)}
    for folder in folders:
        row = record(folder)
        rows[tuple(row[name] for name in KEY)] = row
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def shown(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    """(data, attack, defense) -> the row with the settings of the tables."""
    places = {}
    for row in rows:
        data, defense = row["data"], row["defense"]
        wanted = TABLE.get((data, defense), TABLE.get(defense))
        if wanted is not None and row["settings"].split() == sorted(wanted.split()):
            place = data, row["attack"], defense
            if place in places:
                sys.exit(f"{RESULTS.name}: two runs for {place}, of other seeds or attack settings; leave one out")
            places[place] = row
    return places


def percent(value: str) -> str:
    """`93.9`, or a dash."""
    return f"{100 * float(value):.1f}" if value else "-"


def remarks(row: Row) -> str:
    """What a defense found, in words."""
    parts = []
    if row["backdoored"]:
        parts.append(f"verdict: {'backdoored' if int(row['backdoored']) else 'clean'}")
    if row["anomaly_index"]:
        parts.append(f"anomaly index {float(row['anomaly_index']):.1f}")
    if row["pruned"]:
        parts.append(f"{row['pruned']} pruned")
    parts += [f"{name} {percent(row[name])}" for name in ("precision", "recall", "fpr") if row[name]]
    return "; ".join(parts)


def lines(title: str, heads: list[str], body: list[list[str]]) -> list[str]:
    """A heading and a Markdown table."""
    table = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in body)]
    return [f"### {title}", "", *table, ""]


def tables(rows: list[Row], published: Mapping[tuple[str, str], str]) -> str:
    """The tables of README.md as Markdown."""
    places, out = shown(rows), []
    for data, name in DATA.items():
        for attack, title in ATTACKS.items():
            body = []
            for defense in DEFENSES:
                row = places.get((data, attack, defense))
                if row is None:
                    continue
                cells = [defense, *(percent(row[value]) for value in ("c_acc", "asr", "r_acc", "der"))]
                cells += [published.get((defense, attack), "-")] if data == "cifar10" else []
                body.append([*cells, row["seconds"], remarks(row)])
            heads = ["defense", "C-Acc", "ASR", "R-Acc", "DER"]
            heads += ["published: C-Acc / ASR"] if data == "cifar10" else []
            if body:
                out += lines(f"{name}, {title}", [*heads, "seconds after the victim", "found"], body)
        body = [
            [score, *(percent(places.get((data, attack, run), {}).get("auroc", "")) for attack in ATTACKS)]
            for score, run in SCORES.items()
        ]
        out += lines(f"Detection: AUROC of the scores, {name}", ["AUROC", *ATTACKS.values()], body)
    return "\n".join(out).rstrip()


def draw(rows: list[Row]) -> None:
    """ASR and C-Acc of every defense, attack by attack, as two heat maps."""
    places = shown(rows)
    columns = [(data, attack) for data in DATA for attack in ATTACKS if (data, attack, "none") in places]
    names = [f"{DATA[data]}\n{ATTACKS[attack]}" for data, attack in columns]
    figure = Figure(figsize=(11, 4.8), dpi=100, layout="constrained")
    for axes, value, colours, title in zip(
        figure.subplots(1, 2, sharey=True), ("asr", "c_acc"), ("OrRd", "YlGnBu"), ("ASR (%)", "C-Acc (%)"), strict=True
    ):
        cells = [[places.get((*column, defense), {}).get(value, "") for column in columns] for defense in DEFENSES]
        grid = [[100 * float(cell) if cell else float("nan") for cell in line] for line in cells]
        axes.imshow(grid, cmap=colours, vmin=0, vmax=100, aspect="auto")
        for y, line in enumerate(cells):
            for x, cell in enumerate(line):
                colour = "white" if cell and float(cell) > 0.6 else "black"
                axes.text(x, y, percent(cell), ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(columns)), names, fontsize=7)
        axes.set_yticks(range(len(DEFENSES)), DEFENSES)
        axes.set_title(title, fontsize=10)
        axes.spines[:].set_visible(False)
    figure.savefig(PICTURE)


def main() -> None:
    """Take runs in, or print and draw."""
    if len(sys.argv) > 1:
        take([Path(one) for one in sys.argv[1:]])
        return
    rows = read(RESULTS)
    print(tables(rows, {(row["defense"], row["attack"]): row["published"] for row in read(PUBLISHED)}))
    draw(rows)


if __name__ == "__main__":
    main()
