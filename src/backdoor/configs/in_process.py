"""Composing a job inside somebody else's process: Hydra's globals are theirs before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from backdoor.configs.adopt import parsed, run_words
from backdoor.configs.command import Command, check_job, read_command
from backdoor.configs.explain import explain
from backdoor.configs.plugins import register
from backdoor.errors import UserError

LOCK = RLock()  # Hydra composes with globals: one thread at a time
FOLDER = "hydra.run.dir"


@dataclass(frozen=True)
class Composed:
    """One job.

    Attributes:
        cfg: its config, resolved, without the `hydra` node.
        folder: where it goes, by `hydra.run.dir`.
        choices: group -> choice.
    """

    cfg: DictConfig
    folder: Path
    choices: Mapping[str, str | None]


def compose_job(words: Sequence[str], settings: Mapping[str, Any] | None = None) -> Composed:
    """What the command line makes of these words, checked in the same way.

    Args:
        words: as in the shell, `attack=badnets` and `--config-dir=DIR`.
        settings: more of them, as key -> value.

    Raises:
        UserError: what the command line would answer with one line.
    """
    command: Command | None = None
    try:
        with own_hydra():
            register()
            command = read_command([*words, *(word_of(key, value) for key, value in (settings or {}).items())])
            check_single(command)
            command = replace(command, overrides=(*command.overrides, *run_words(command.overrides)))
            job = check_job(command)
            choices = {str(group): name for group, name in job.whole.hydra.runtime.choices.items()}
            folder = folder_of(job.whole, chosen=any(word.key_or_group == FOLDER for word in parsed(command.overrides)))
            return Composed(resolved(job.cfg, job.whole, folder), folder, choices)
    except UserError:
        raise
    except Exception as error:
        raise told(error, command) from error


def told(error: Exception, command: Command | None = None) -> Exception:
    """The UserError that says in one line what the command line would say of `error`; else the error itself."""
    line = None if isinstance(error, UserError) else explain(error, command)
    return error if line is None else UserError(line)


@contextmanager
def own_hydra() -> Iterator[None]:
    """Hydra's globals are ours inside and as they were after, for a caller that is a Hydra application itself."""
    with LOCK:
        hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        version, job = VersionBase.instance().version_base, JobRuntime.instance().get("name")
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = hydra
            HydraConfig.instance().cfg = config
            VersionBase.instance().version_base = version
            JobRuntime.instance().set("name", job)


def check_single(command: Command) -> None:
    """Raises UserError for words that stand for several jobs."""
    if command.sweep:
        raise UserError("-m: one job at a time here; call it once for each, or sweep with python -m backdoor -m ...")
    for word in parsed(command.overrides):
        if word.is_sweep_override():
            raise UserError(
                f"{word.input_line}: several values; call it once for each of them, or write "
                f"{word.key_or_group}=[...] for a list"
            )


def word_of(key: str, value: Any) -> str:
    """A setting as a word of Hydra's grammar.

    >>> word_of("attack.target", "Stop sign"), word_of("seed", 1), word_of("defense", None)
    ("attack.target='Stop sign'", 'seed=1', 'defense=null')
    """
    return f"{key}={value_of(value)}"


def value_of(value: Any) -> str:
    """A Python value in Hydra's grammar.

    Raises:
        UserError: neither a scalar, a text, a path, nor a list or mapping of such.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{value_of(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(value_of, value)) + "]"
    if isinstance(value, str | Path):
        plain = str(value)
        return plain if plain.isidentifier() else "'" + plain.replace("\\", "\\\\").replace("'", "\\'") + "'"
    raise UserError(f"{value!r:.60}: expected a number, a text, a list or a mapping, got {type(value).__name__}")


def folder_of(whole: DictConfig, *, chosen: bool) -> Path:
    """`hydra.run.dir`; one that the caller did not choose and that is there already (the same second) gets a number."""
    folder = Path(str(whole.hydra.run.dir))
    free = (folder if number == 1 else folder.with_name(f"{folder.name}-{number}") for number in range(1, 10**6))
    return folder if chosen else next(one for one in free if not one.exists())


def resolved(cfg: DictConfig, whole: DictConfig, folder: Path) -> DictConfig:
    """The config with plain values, those of `${hydra:...}` too."""
    with read_write(whole), open_dict(whole):
        whole.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(whole)
    plain = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(plain, DictConfig)
    return plain
