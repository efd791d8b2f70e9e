"""One clear line for each mistake that the command line can hold."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue
from yaml import MarkedYAMLError

from backdoor.configs.command import Command
from backdoor.configs.words import BY_THE_WAY, hydra_words, raised_by_hydra, refused_word
from backdoor.errors import UserError, suggest

FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
# Only while Hydra makes the run's folder; elsewhere a missing file is a bug, or a UserError names it.
NOT_A_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


def explain(error: BaseException, command: Command | None = None) -> str | None:
    """The one line for a user's mistake, or None where a traceback helps more.

    Args:
        error: what was raised; its causes are looked at too, outermost first.
        command: the command line, to compose the config again for the names that would have been right.
    """
    for part in _chain(error):
        tell = next((tell for kind, tell in _TELLERS if isinstance(part, kind)), None)
        line = tell(part, command) if tell else None
        if line is not None:
            return " ".join(line.split())
        if "No space left on device" in str(part):  # safetensors and torch raise it without an errno
            return _disk_full(str(part))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _message(error: Any, command: Command | None) -> str:
    return str(error)


def _first_line(error: Any, command: Command | None) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _missing_config(error: MissingConfigException, command: Command | None) -> str:
    """An unknown choice of a group, or an unknown primary config."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if error.options is None or not group:
        names = [path.stem for path in Path(command.path).glob("*.yaml")] if command else []
        return f"--config-name={choice}: no such config; {suggest(choice, names)}" if names else str(error)
    choices = [name for name in error.options if not name.startswith("_")]
    words = command.overrides if command else ()
    word = next((word for word in words if re.match(rf"\+*{re.escape(group)}(@[^=]*)?=", word)), None)
    key = word.partition("=")[0] if word else group
    hint = suggest(choice, choices) if choices else f"the folder {group}/ of the configs holds no choice"
    return f"{key}={choice}: no such {group.rpartition('/')[2]}; {hint}"


def _parse(error: OverrideParseException, command: Command | None) -> str:
    hint = "expected key=value; quote a value that holds spaces, commas or brackets: 'key=\"a, b\"'"
    if "=" in error.override:
        return f"{error.override}: cannot be read; {hint}"
    return f"{error.override}: not an override; {hint}"


def _composition(error: ConfigCompositionException, command: Command | None) -> str:
    """Hydra says what went wrong only in words, so the words are matched; others are shown as they are."""
    text = str(error)
    for pattern, tell in _PHRASES:
        found = re.search(pattern, text)
        line = tell(found, command) if found else None
        if line is not None:
            return line
    if error.__cause__ is not None:
        word = _first_line(error, command).removeprefix("Error merging override ")
        return f"{word}: {_first_line(error.__cause__, command)}"
    return text


def _several_values(found: re.Match[str], command: Command | None) -> str:
    key, _, value = found["word"].partition("=")
    return f"{found['word']}: several values; add -m to run each of them, or write {key}=[{value}] for a list"


def _not_chosen(found: re.Match[str], command: Command | None) -> str | None:
    key = found["key"]
    if command is None or not (Path(command.path) / key).is_dir():
        return None
    return f"{key}: this config has no place for a choice of {key}; write +{key}=NAME to add one"


def _already_there(found: re.Match[str], command: Command | None) -> str:
    return f"+{found['key']}: it is there already; write {found['key']}=VALUE without the plus to change it"


def _packaged(found: re.Match[str], command: Command | None) -> str:
    return f"{found['key']}: did you mean {found['near']}=VALUE?"


def _unknown_key(found: re.Match[str], command: Command | None) -> str:
    """An option that is not in the config: name its near matches at that level, or elsewhere."""
    key = found["key"].partition("=")[0]
    cfg = command.compose_without(key) if command else None
    if cfg is None:
        return f"{key}: no such option; --help lists them"
    node: Any = cfg
    path: list[str] = []
    for name in key.split("."):
        if not isinstance(node, DictConfig) or node._is_none():
            return f"{key}: '{'.'.join(path)}' is a single value, it has no options of its own"
        if name not in node:
            break
        node = node._get_node(name)
        path.append(name)
    else:
        return f"{key}: cannot be changed like this"
    names = {str(name) for name in node if not str(name).startswith("_")}
    if not path:
        chosen = {str(group) for group in cfg.hydra.runtime.choices}
        names = (names | chosen) - {"hydra"} if "/" in key else names | {g for g in chosen if "/" not in g}
    elsewhere = [full for full in _paths(cfg) if full.endswith(f".{name}")]
    if elsewhere:
        return f"{key}: no such option; did you mean {' or '.join(repr(full) for full in elsewhere[:3])}?"
    where = f" '{name}' in '{'.'.join(path)}'" if path else ""
    return f"{key}: no such option{where}; {suggest(name, names - {'hydra'})}"


def _paths(cfg: Any, prefix: str = "") -> Iterator[str]:
    """The dotted paths of all keys below `cfg`, without Hydra's own."""
    if not isinstance(cfg, DictConfig) or cfg._is_none() or cfg._is_interpolation():
        return
    for key in cfg:
        if prefix or key != "hydra":
            path = f"{prefix}{key!s}"
            yield path
            yield from _paths(cfg._get_node(key), f"{path}.")


def _search_path(error: SearchPathException, command: Command | None) -> str:
    return f"--config-dir={command.extra}: no such folder" if command and command.extra else str(error)


def _instantiation(error: InstantiationException, command: Command | None) -> str | None:
    """A `_target_` that is not there, or arguments that it does not take; its own errors are bugs."""
    text = str(error)
    key = text.rpartition("full_key: ")[2].strip() if "full_key: " in text else "config"
    cause = error.__cause__
    if text.startswith("Error locating target"):
        return f"{key}._target_: {text.splitlines()[0].partition(', set env')[0]}"
    if text.startswith("Target '"):  # Hydra itself refuses to call it
        return f"{key}: {text.partition('full_key: ')[0]}"
    if text.startswith("Cannot instantiate"):  # a value where Hydra instantiates each key
        words = hydra_words(command) if command else []
        return next((f"{one}: {text}" for one in words if one.lstrip("+").startswith("hydra.callbacks")), None)
    # A call with wrong arguments fails in the caller's frame: nothing deeper was entered.
    called = cause is not None and cause.__traceback__ is not None and cause.__traceback__.tb_next is None
    return f"{key}: {cause}" if called and isinstance(cause, TypeError) else None


def _value(error: ValueError, command: Command | None) -> str | None:
    """Hydra's word for `model=null`; its own errors are bugs."""
    own = hydra_words(command) if command else []
    words = [word for word in command.overrides if word.endswith("=null") and word not in own] if command else []
    if "Config group override must be" not in str(error) or not words:
        return refused_word(error, command)
    word = words[0]
    key = word.partition("=")[0].lstrip("+")
    return f"{word}: expected the name of a choice; ~{key} leaves out what a run can do without, as ~logger"


def _memory(error: Any, command: Command | None) -> str | None:
    """What NumPy, torch and CUDA say when there is not enough of it."""
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
        return None
    return (
        f"not enough memory: {_first_line(error, command) or 'allocation failed'}; use smaller or fewer images "
        "(data.image_size, data.limit), a smaller model or a smaller batch_size"
    )


def _missing_value(error: MissingMandatoryValue, command: Command | None) -> str:
    return f"{error.full_key}: required, and no value was given; add {error.full_key}=VALUE"


def _interpolation(error: InterpolationResolutionError, command: Command | None) -> str:
    return f"{error.full_key}: cannot be resolved: {_first_line(error, command)}"


def _yaml(error: MarkedYAMLError, command: Command | None) -> str:
    mark = error.problem_mark
    place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
    return f"{place}not valid YAML: {error.problem}"


def _disk_full(what: str) -> str:
    return f"{what}: the disk is full; free some space, or set hydra.run.dir and store.dir to another disk"


def _os_error(error: OSError, command: Command | None) -> str | None:
    """A full disk or a folder that cannot be written; other errors of the system keep their traceback."""
    name = f"'{error.filename}'" if error.filename else "writing"
    if error.errno in FULL:
        return _disk_full(name)
    if raised_by_hydra(error) and error.errno in NOT_WRITABLE | NOT_A_FOLDER:
        what = f"hydra.run.dir: cannot write {name} ({error.strerror})"
        return f"{what}; set it (hydra.sweep.dir with -m) to a writable folder"
    if error.errno in NOT_WRITABLE:
        return f"{name}: {error.strerror}; hydra.run.dir and store.dir must be writable, data readable"
    return None


_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|CUDA out of memory|MPS backend out of memory")
_Teller = Callable[[Any, Command | None], str | None]
_TELLERS: tuple[tuple[type[BaseException], _Teller], ...] = (
    (UserError, _message),
    (MissingConfigException, _missing_config),
    (OverrideParseException, _parse),
    (InstantiationException, _instantiation),
    (ConfigCompositionException, _composition),
    (SearchPathException, _search_path),
    (CompactHydraException, _first_line),
    (HydraException, _first_line),
    (MissingMandatoryValue, _missing_value),
    (InterpolationResolutionError, _interpolation),
    (MarkedYAMLError, _yaml),
    (OSError, _os_error),
    (MemoryError, _memory),
    (RuntimeError, _memory),
    (ValueError, _value),  # before the next line's
    *((kind, refused_word) for kind in BY_THE_WAY),
)
_PHRASES: tuple[tuple[str, Callable[[re.Match[str], Command | None], str | None]], ...] = (
    (r"Ambiguous value for argument '(?P<word>.+)'", _several_values),
    (r"Sweep parameters '(?P<word>.+)' requires --multirun", _several_values),
    (r"An item is already at '(?P<key>[^']+)'", _already_there),
    (r"Multiple values for (?P<key>[^.]+)\.", _already_there),
    (
        r"Could not override '(?P<key>[^']+)'\.\s*Did you mean .*override (one of )?(?P<near>[^?]+)\?",
        _packaged,
    ),
    (r"Could not override '(?P<key>[^']+)'\. No match in the defaults list", _not_chosen),
    (r"Could not (?:override|delete(?: from config\.)?) '(?P<key>[^']+)'", _unknown_key),
)
