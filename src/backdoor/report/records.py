"""Finding and reading result.json: thousands of records, some of them damaged, without a word of torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor.errors import UserError
from backdoor.store.run_folder import RESULT, STATUS, RunFolder
from backdoor.store.untrusted import Unreadable

# What `Record` writes. Raise it when a reader of the older form would misread the newer one.
SCHEMA = 2
METRICS = ("c_acc", "c_acc_non_target", "asr", "asr_worst", "r_acc", "der")
FOUND = ("precision", "recall", "fpr", "f1", "auroc")
TEXTS = ("data", "model", "attack", "defense", "started")
# Runs whose configs differ in nothing else are the same experiment, made with another seed or on another machine.
INCIDENTAL = ("seed", "store", "logger", "progress", "threads", "objective")
WATCHING = ("monitor_images", "checkpoint_s")  # of the trainer: how often it is looked at, and saved

LIMIT = 2**63  # of numbers: what a column of the tables holds

Row = dict[str, Any]


class BadRecord(ValueError):
    """A record that cannot be used; the message says why, in a few words."""


@dataclass
class Collected:
    """What a search found.

    Attributes:
        rows: one a record, as `row_of` makes them, with `folder`: the run's folder.
        skipped: folder -> why its record is left out.
    """

    rows: list[Row] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


def collect(folders: Iterable[Path]) -> Collected:
    """Read every record below `folders`; none that is bad stops the others.

    Raises:
        UserError: a folder that is not there.
    """
    found = Collected()
    for folder in run_folders(folders, found.skipped):
        try:
            found.rows.append({**row_of(read(folder)), "folder": folder})
        except BadRecord as error:
            found.skipped[folder] = str(error)
        except RecursionError:
            found.skipped[folder] = f"{RESULT} is damaged: nested too deep"
    return found


def run_folders(folders: Iterable[Path], skipped: dict[Path, str] | None = None) -> Iterator[Path]:
    """Every folder with a result.json or a status.json, once, in the order of the names. Links are not followed.

    Args:
        skipped: gets the folders that cannot be looked into, and why.

    Raises:
        UserError: a folder that is not there.
    """
    seen, skipped = set[str](), {} if skipped is None else skipped
    for top in folders:
        if not top.is_dir():
            raise UserError(
                f"{top}: expected a folder with runs, found none; name outputs, multirun or folders in them"
            )
        left = [str(top.resolve())]
        while left:  # no recursion, which a deep tree would end
            name = left.pop()
            try:
                name.encode()
                with os.scandir(name) as entries:
                    inner = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
            except UnicodeEncodeError:
                skipped[Path(name)] = "its name is not UTF-8, as the tables are; rename it"
                continue
            except OSError as error:
                skipped[Path(name)] = f"cannot be looked into ({error.strerror})"
                continue
            if not {RESULT, STATUS} & inner.keys():  # else it is a run, and no run lies in another one
                left += [os.path.join(name, one) for one in sorted(inner, reverse=True) if inner[one]]
            elif name not in seen:
                seen.add(name)
                yield Path(name)


def read(folder: Path) -> dict[str, Any]:
    """The record of a run's folder.

    Raises:
        BadRecord: there is none yet, it is no JSON to its end, or it has another schema.
    """
    try:
        record = RunFolder(folder).read(RESULT)
    except FileNotFoundError:
        raise BadRecord(f"no {RESULT} ({RunFolder(folder).state()})") from None
    except OSError as error:
        raise BadRecord(f"{RESULT} cannot be read ({error.strerror})") from None
    except Unreadable as error:
        raise BadRecord(str(error)) from None
    if not isinstance(record, dict) or type(record.get("schema")) is not int:
        raise BadRecord(f"{RESULT} is no record of a run (it has no schema)")
    if record["schema"] < SCHEMA:
        raise BadRecord(
            f"schema {record['schema']}, expected {SCHEMA}: made by an older backdoor; run it again "
            "(what the store still has is not trained again)"
        )
    if record["schema"] > SCHEMA:
        raise BadRecord(f"schema {record['schema']}, expected {SCHEMA}: made by a newer backdoor; update this one")
    return record


def row_of(record: Mapping[str, Any]) -> Row:
    """A record as one flat row; what is not known is None.

    Returns:
        data, model, attack, defense, ratio, ratio_of, goal, seed; the final metrics as fractions, `victim_c_acc` and
        `victim_asr` before the defense, and the last detection (`precision`, ...); `seconds` of the job, `ram` and
        `gpu` (peaks in bytes), `started` (ISO 8601, UTC), `commit`; `source`, what attack.run named; and `settings`, a
        digest of the config without its seed.

    Raises:
        BadRecord: a part is missing or is not what it should be.
    """
    config, final, stages = _part(record, "config", dict), _part(record, "final", dict), _part(record, "stages", list)
    peaks, machine = _part(record, "peak_memory", dict), _part(record, "environment", dict)
    before = next((stage for stage in stages if isinstance(stage, dict) and stage.get("name") == "victim"), {})
    detection = final.get("detection", {})
    attack = _part(config, "attack", dict)
    row: Row = {name: _part(record, name, str) for name in TEXTS}
    kind = attack.get("ratio_of")
    row |= {"ratio": _number(attack, "ratio"), "ratio_of": None if kind is None else str(kind)}
    row["goal"] = goal_of(record)
    row["seed"] = _part(record, "seed", int)
    row |= {name: _fraction(final, name) for name in METRICS}
    if row["asr_worst"] is None:  # one trigger alone
        row["asr_worst"] = row["asr"]
    row |= {f"victim_{name}": _fraction(before, name) for name in ("c_acc", "asr")}
    row |= {name: _fraction(detection, name) for name in FOUND}
    row |= {"seconds": _number(record, "seconds"), "ram": _whole(peaks, "ram"), "gpu": _whole(peaks, "gpu")}
    git = machine.get("git")
    row["commit"] = str(git.get("commit")) if isinstance(git, dict) else None
    source = attack.get("run")
    row |= {"source": None if source is None else str(source), "settings": settings(config)}
    # JSON can write halves of characters, which no table can hold.
    return {name: readable(value) if isinstance(value, str) else value for name, value in row.items()}


def goal_of(record: Mapping[str, Any]) -> str | None:
    """What the attack wants of its triggered images, `targeted` or `untargeted`; None without such images.

    Records from before there were goals name no attack test set; all of them were targeted.
    """
    told = record.get("attacks")
    first = told[0] if isinstance(told, list) and told else None
    if isinstance(first, dict):
        return str(first.get("goal"))
    return "targeted" if "asr" in record["final"] else None


def readable(text: str) -> str:
    """The text with what cannot be encoded spelled out.

    >>> print(readable("a\\ud800b"))
    a\\ud800b
    """
    return text.encode(errors="backslashreplace").decode()


def settings(config: Mapping[str, Any]) -> str:
    """A digest (8 digits) of what was run, whatever its seed and wherever it was."""
    told = {name: value for name, value in config.items() if name not in INCIDENTAL}
    # With attack.run each seed has a folder of its own, and its attack and model are in this config, too.
    told["attack"] = {name: value for name, value in config["attack"].items() if name != "run"}
    if isinstance(config.get("trainer"), Mapping):
        told["trainer"] = {name: value for name, value in config["trainer"].items() if name not in WATCHING}
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=4).hexdigest()


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of records with the same settings and seed only the one that was started last, sorted by what was run."""
    kept: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row["started"]):
        kept[(row["settings"], row["seed"], row["source"])] = row
    return sorted(kept.values(), key=order)


def order(row: Row) -> tuple[Any, ...]:
    """Sorts by data, model, attack, ratio, defense (no defense first) and seed."""
    ratio = -1.0 if row["ratio"] is None else row["ratio"]
    return (row["data"], row["model"], row["attack"], ratio, row["defense"] != "none", row["defense"], row["seed"])


def _part(record: Mapping[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if type(value) is not kind or (isinstance(value, int) and not -LIMIT <= value < LIMIT):
        raise BadRecord(f"{RESULT} is damaged: expected {name} to be {kind.__name__}, got {record.get(name)!r:.40}")
    return record[name]


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name) if isinstance(values, Mapping) else None
    if value is not None and (type(value) not in (int, float) or not 0 <= value < LIMIT):
        raise BadRecord(f"{RESULT} is damaged: expected {name} to be a number of at least 0, got {value!r:.40}")
    return value


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    value = _number(values, name)
    return None if value is None else int(value)


def _fraction(values: Mapping[str, Any], name: str) -> float | None:
    value = _number(values, name)
    if value is not None and value > 1:
        raise BadRecord(f"{RESULT} is damaged: expected {name} to be a fraction from 0 to 1, got {value!r:.40}")
    return value
