"""Finished jobs, kept in the store: a sweep that asks for one again gets its folder without a run.

Torch is not imported: a sweep of nothing but finished jobs should end before torch has loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from backdoor import __version__
from backdoor.errors import UserError, suggest
from backdoor.report.records import SCHEMA
from backdoor.store.intact import clear, reason, set_aside
from backdoor.store.source import source_digest
from backdoor.store.store import META, Store, fingerprint, link_or_copy, seal, sealed, store_root, write_json

KIND = "result"
RUN = "backdoor.experiment.run"
# They say where things go and what is shown, not what comes out.
APART = ("store", "logger", "progress", "force", "objective")
# Settings that name files; what lies there counts, not where.
NAMED = frozenset(
    ["data.root", "data.train", "data.test"]
    + [f"attack.{name}" for name in ("train", "model", "run", "isolated", "poisoned_rows", "test_attack")]
)
FILES = ("result.json", "metrics.csv", "environment.json", "plan.npz", "trigger.safetensors")

Stamp = Callable[[str], Any]


def stamp(name: str) -> Any:
    """What lies at a path, by the names, sizes and times of its files; the path itself if nothing does."""
    path = Path(name).expanduser()
    if path.is_file():
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]
    if not path.is_dir():
        return name
    digest = hashlib.blake2b(digest_size=16)
    for folder, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            found = os.stat(os.path.join(folder, file))
            place = os.path.relpath(os.path.join(folder, file), path)
            digest.update(f"{place} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def settled(cfg: DictConfig, stamp: Stamp = stamp) -> dict[str, Any]:
    """The resolved config without what cannot change a result, its files by their stamps."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    found = {str(name): value for name, value in plain.items() if name not in APART}
    if isinstance(found.get("trainer"), dict):
        found["trainer"] = {name: value for name, value in found["trainer"].items() if name != "checkpoint_s"}
    return {name: _stamped(value, name, stamp) for name, value in found.items()}


def _stamped(value: Any, place: str, stamp: Stamp) -> Any:
    if isinstance(value, dict):
        return {name: _stamped(one, f"{place}.{name}", stamp) for name, one in value.items()}
    if isinstance(value, list):
        return [_stamped(one, place, stamp) for one in value]
    is_path = place in NAMED or place.endswith(".path")
    return stamp(value) if is_path and isinstance(value, str) else value


def result_key(cfg: DictConfig, stamp: Stamp = stamp) -> str:
    """Of a job's result: its config, the source that makes, measures and draws it, and the schema of its record."""
    config = settled(cfg, stamp)
    return fingerprint([__version__, SCHEMA, config, source_digest(config, whole=RUN)])


def find(cfg: DictConfig, stamp: Stamp = stamp) -> Path | None:
    """The kept result of a job, or None if there is none or `force=true`; leaves no trace.

    `trainer.device=auto` is one setting: a job that ended on a GPU is finished on a machine without one, too.
    environment.json says where it ran.
    """
    if OmegaConf.select(cfg, "force"):
        return None
    folder = store_root(OmegaConf.select(cfg, "store.dir")) / KIND / result_key(cfg, stamp)
    return folder if (folder / META).exists() else None


def keep(cfg: DictConfig, folder: Path, store: Store) -> None:
    """Keep the finished run in `folder` as the result of its config; an older one is replaced."""
    key = result_key(cfg)
    final = store.folder(KIND, key)
    store.make_room(KIND)
    with store.lock(final):
        part = final.with_name(key + ".part")
        clear(part)
        part.mkdir()
        _copy(folder, part)
        seal(part, {"kind": KIND, "key": key, "of": {"version": __version__, "schema": SCHEMA}})
        clear(final)
        os.replace(part, final)


def reuse(kept: Path, cfg: DictConfig, folder: Path) -> bool:
    """Fill a job's folder from a kept result, the job's own config.yaml included.

    Weights are links where the file system allows it, the rest are copies, which may be edited.

    Returns:
        False if the result is not what was kept: that is said, it is set aside, and the job is to run.
    """
    try:
        sealed(kept)
        victim = dict(json.loads((kept / "status.json").read_text())).get("victim")
    except Exception as error:  # damaged files end their readers in any way
        print(f"kept result {kept.name} cannot be used ({reason(error)}): set aside, and the job runs", flush=True)
        with suppress(OSError):
            set_aside(kept)
        return False
    try:
        for part in (folder, folder / "weights", folder / "figures"):
            part.mkdir(parents=True, exist_ok=True)
        _copy(kept, folder)
    except (OSError, ValueError):
        return False
    (folder / "config.yaml").write_text(yaml.safe_dump(OmegaConf.to_container(cfg, resolve=True), sort_keys=False))
    status = {"state": "done", "victim": "hit" if victim == "trained" else victim, "kept": kept.name}
    write_json(folder / "status.json", status)
    return True


def _copy(source: Path, target: Path) -> None:
    """What a run leaves by its record, and nothing else that may lie in the folder.

    Raises:
        OSError, ValueError: there is no whole result.
    """
    result = json.loads((source / "result.json").read_text())
    if not isinstance(result, Mapping) or result.get("schema") != SCHEMA:
        raise ValueError(f"{source.name}: result.json: expected schema {SCHEMA}")
    stages = [str(stage["name"]) for stage in result.get("stages", ())]
    for name in ("status.json", *FILES, *(f"{stage}.npz" for stage in stages)):
        if (source / name).is_file():
            _replace(source / name, target / name, shutil.copyfile)
    (target / "weights").mkdir(exist_ok=True)
    for stage in stages:
        weights = source / "weights" / f"{stage}.safetensors"
        if weights.is_file():
            link_or_copy(weights, target / "weights" / weights.name)
    shutil.copytree(source / "figures", target / "figures", dirs_exist_ok=True)


def _replace(source: Path, target: Path, copy: Callable[[Path, Path], Any]) -> None:
    temporary = target.with_name(target.name + ".tmp")
    copy(source, temporary)
    os.replace(temporary, target)


def final_of(folder: Path) -> dict[str, Any]:
    """What a job's result.json says of its end; empty without one, as after a preview."""
    try:
        return dict(json.loads((folder / "result.json").read_text())["final"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def objective_of(folder: Path, names: Any) -> float | list[float]:
    """What a job is worth to a sweeper that searches: of its `final`, `asr`, `detection.auroc`, or a list of such.

    Raises:
        UserError: the job has measured no such thing.
    """
    if isinstance(names, Sequence) and not isinstance(names, str):
        return [float(objective_of(folder, name)) for name in names]  # type: ignore[arg-type]
    final = final_of(folder)
    value: Any = final
    for name in str(names).split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if type(value) not in (int, float):
        known = [name for name, one in final.items() if type(one) in (int, float)]
        raise UserError(f"objective={names}: the job has measured no such number; {suggest(str(names), known)}")
    return float(value)
