"""What can be checked of a command before anything trains: the flags, and the config of every job."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError

from backdoor.configs.adopt import adopt, parsed, value_at
from backdoor.configs.class_names import number_classes
from backdoor.configs.places import conf_dir
from backdoor.errors import UserError

# Composing takes about 0.1 s a job; past this many, a job is checked as it starts.
MAX_CHECKED_JOBS = 256
NAMED = ("data.name", "attack.name", "defense.name")
KEYED = ("attack.stages", "attack.groups", "defense.stages")
# Surrogates stand for bytes that are no UTF-8.
PLAIN_PART = re.compile(r"(?!\.\.?$)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")
# Groups of which a job has one choice; Hydra would merge several into a mixture of them.
SINGLE = ("data", "model", "attack", "victim", "defense", "trainer", "logger", "label_map")


@dataclass(frozen=True)
class Job:
    """One job of a sweep, composed.

    Attributes:
        cfg: its config, without the `hydra` node.
        whole: the same as it was composed, with that node.
        here: whether it will run in this process, and not where a launcher plugin sends it.
    """

    cfg: DictConfig
    whole: DictConfig
    here: bool


@dataclass(frozen=True)
class Command:
    """A command line, as far as composing its configs needs it.

    Attributes:
        overrides: `key=value` words in the order given.
        sweep: runs one job for each combination of comma-separated values (`-m`).
        path: folder of the primary config (`--config-path`, else conf/).
        name: the primary config, without `.yaml` (`--config-name`).
        extra: one more folder with configs (`--config-dir`).
        argv: the same command as Hydra can parse it: all flags before all overrides.
    """

    overrides: tuple[str, ...]
    sweep: bool
    path: str
    name: str
    extra: str | None
    argv: tuple[str, ...]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config that `overrides` give, with its `hydra` node; raises what Hydra raises."""
        words = [*overrides, *self.search_words()]
        with initialize_config_dir(config_dir=self.path, job_name="backdoor", version_base="1.3"):
            return compose(config_name=self.name, overrides=words, return_hydra_config=True)

    def search_words(self) -> list[str]:
        """What `--config-dir` is as an override."""
        return [] if self.extra is None else [f"hydra.searchpath=['file://{Path(self.extra).resolve()}']"]

    def compose_without(self, key: str) -> DictConfig | None:
        """The config as it would be without the overrides of `key`; None if it cannot be composed either."""
        bad = re.compile(rf"[+~]*{re.escape(key)}(@[^=]*)?(=|$)")
        words = self.overrides
        first = next((place for place, word in enumerate(words) if bad.match(word)), 0)
        # Other overrides may be wrong too; Hydra applied those before the bad one already.
        for attempt in ([word for word in words if not bad.match(word)], words[:first], ()):
            try:
                return self.compose(attempt)
            except (HydraException, OSError):
                continue
        return None

    @property
    def names_places(self) -> bool:
        """Whether a word of a single run gives a name that its folder may be called by."""
        return not self.sweep and any(word.partition("=")[0].lstrip("+") in NAMED for word in self.overrides)

    @property
    def composable(self) -> bool:
        """Whether `compose` sees the same folders as the run itself will."""
        own_search = any(word.lstrip("+").startswith("hydra.searchpath=") for word in self.overrides)
        return Path(self.path).is_absolute() and not (own_search and self.extra)


def read_command(argv: Sequence[str], config: str = "config") -> Command:
    """Parse the flags (Hydra's own) and leave the overrides as they are; `config` is the program's primary config.

    Raises:
        UserError: an unknown flag, or one that lacks its value.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = get_args_parser().parse_intermixed_args(list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_flag_error(argv, said.getvalue())) from None
    if args.experimental_rerun is not None:
        raise UserError("--experimental-rerun: not supported, for it unpickles; give the command again")
    flags = [word for word in argv if word not in args.overrides]
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    path = args.config_path or str(conf_dir())
    if args.config_path is not None and "://" not in path:
        # Hydra would look beside the source file, which nobody means; of two flags the last one counts.
        path = str(Path(path).resolve())
        flags += ["--config-path", path]
    return Command(
        overrides=tuple(args.overrides),
        sweep=not shows and (args.multirun or "hydra.mode=MULTIRUN" in args.overrides),
        path=path,
        name=args.config_name or config,
        extra=args.config_dir,
        argv=(*flags, *args.overrides),
    )


def _flag_error(argv: Sequence[str], said: str) -> str:
    """argparse's complaint as one line, with a hint for `--attack=badnets` and `--attack badnets`."""
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    unknown = (word for word in argv if word.startswith("--") and word.partition("=")[0] not in known)
    flag = next(unknown, None)
    if flag is None:
        return said.strip().splitlines()[-1].partition("error: ")[2]
    example = flag.lstrip("-") if "=" in flag else f"{flag.lstrip('-')}=VALUE"
    return f"{flag}: no such flag; options are written without dashes ({example}), flags are listed by --help"


def check_job(job: Command, compose: Callable[[Sequence[str]], DictConfig] | None = None) -> Job:
    """Compose one job's config and check it, so that the tenth job cannot fail after nine have trained.

    Args:
        compose: in the place of the command's own, for instance a `Composer`'s.

    Raises:
        UserError: as `check_choices`, `adopt` and `check_config`; and what Hydra raises for a config that cannot be
            composed.
    """
    check_choices(job.overrides)
    whole = (compose or job.compose)(job.overrides)
    launcher = OmegaConf.select(whole, "hydra.launcher._target_")
    cfg = copy.deepcopy(whole)
    with open_dict(cfg):
        del cfg["hydra"]  # has required values that only a running job fills
    cfg = adopt(cfg, job.overrides)
    check_config(cfg)
    number_classes(cfg)
    return Job(cfg, whole, here=str(launcher).endswith(".BasicLauncher"))


def check_choices(words: Sequence[str]) -> None:
    """Raises UserError for a list of choices where a job has one."""
    for word in parsed(words):
        chosen = None if word.is_sweep_override() else word.value()
        if word.key_or_group in SINGLE and isinstance(chosen, list):
            each = f"{word.key_or_group}={','.join(map(str, chosen))}"
            raise UserError(f"{word.input_line}: expected one choice, got a list; -m {each} runs each of them")


def waits_for_hydra(error: BaseException) -> bool:
    """Whether `error` is about `${hydra:...}`, which has values only inside a running job."""
    cause = error.__cause__
    return "HydraConfig was not set" in str(error) or (cause is not None and waits_for_hydra(cause))


def check_names(cfg: DictConfig) -> None:
    """What folders and files are named by is a plain part of a path.

    Raises:
        UserError: a name that would lead elsewhere.
    """
    names = {key: value_at(cfg, key) for key in NAMED}
    for key in KEYED:
        node = value_at(cfg, key)
        names |= {f"{key}.{name!s}": name for name in node} if isinstance(node, DictConfig) else {}
    for key, name in names.items():
        if name is not None and not PLAIN_PART.fullmatch(str(name)):
            raise UserError(
                f"{key}={str(name)!a}: folders and files are named by it; expected a name without / and \\, control "
                "characters, and not . or .."
            )


def check_config(cfg: DictConfig) -> None:
    """Every value is there and can be resolved, and names are names.

    Raises:
        UserError: a required value (`???`) was not given, or `${...}` leads nowhere; or as `check_names`.
    """
    missing = []
    for node, key in _leaves(cfg):
        if OmegaConf.is_interpolation(node, key):
            _check_reference(node, key)
        elif OmegaConf.is_missing(node, key):
            missing.append(node._get_full_key(key))
    if missing:
        more = f" (and so are {', '.join(missing[1:])})" if missing[1:] else ""
        raise UserError(f"{missing[0]}: required, and no value was given; add {missing[0]}=VALUE{more}")
    check_names(cfg)


def _leaves(node: DictConfig | ListConfig) -> Iterator[tuple[DictConfig | ListConfig, Any]]:
    """Each value below `node` as its container and key, without resolving any."""
    keys: Sequence[Any] = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        child: Any = node._get_node(key)
        closed = child._is_none() or child._is_missing() or child._is_interpolation()
        if isinstance(child, DictConfig | ListConfig) and not closed:
            yield from _leaves(child)
        else:
            yield node, key


def _check_reference(node: DictConfig | ListConfig, key: Any) -> None:
    try:
        node[key]
    except InterpolationResolutionError as error:
        if not waits_for_hydra(error):  # inside the job this is checked again
            name, reason = node._get_full_key(key), str(error).splitlines()[0]
            raise UserError(f"{name}: cannot be resolved: {reason}") from error
