"""Which jobs a sweep has, in which order, and in which folders."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep, ValueType
from omegaconf import DictConfig

from backdoor.configs.command import Command
from backdoor.configs.listing import groups
from backdoor.configs.plugins import package_dirs
from backdoor.configs.words import check_plugin
from backdoor.errors import UserError

MOST = 100_000  # jobs: more would take minutes and gigabytes before the first begins
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
Groups = Callable[[], Mapping[str, Collection[str]]]


def sweeper_of(command: Command) -> DictConfig:
    """The `hydra.sweeper` node of a command's config; raises what Hydra raises if its first job cannot be composed.

    Raises:
        UserError: as `check_plugin`, of the sweeper and of the launcher.
    """
    own = command.compose(first_words(command.overrides)).hydra
    check_plugin("sweeper", own.sweeper)
    check_plugin("launcher", own.launcher)
    return own.sweeper


def all_words(command: Command, sweeper: DictConfig | None = None) -> list[tuple[str, ...]]:
    """The overrides of every job, victims first: `hydra.sweeper.params` of the config, then the command line's.

    Args:
        sweeper: as `sweeper_of` gives it, if that is known already.

    Raises:
        UserError: a sweeper that chooses its jobs as it goes; a word that gives no list of values, or too many.
        HydraException: the first job cannot be composed, by which the params are found.
    """
    sweeper = sweeper_of(command) if sweeper is None else sweeper
    if not is_basic(sweeper):
        raise UserError(
            f"hydra.sweeper._target_={sweeper.get('_target_')}: it chooses its jobs as it goes; expected "
            "hydra/sweeper=basic, whose jobs can be told before they run"
        )
    extra = [Path(command.extra)] if command.extra is not None else []
    words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()] + own_words(command.overrides)
    return victims_first(
        [tuple(job) for job in expand(words, lambda: groups(Path(command.path), *extra, *package_dirs().values()))]
    )


def own_words(overrides: Sequence[str]) -> list[str]:
    """The words without the one that is another way to write `-m`."""
    return [word for word in overrides if word != "hydra.mode=MULTIRUN"]


def is_basic(sweeper: DictConfig) -> bool:
    """Whether it is Hydra's own grid."""
    return str(sweeper.get("_target_")) == BASIC


def first_words(words: Sequence[str]) -> list[str]:
    """A job's overrides: the first of the values of each word; without those that only a sweeper can read."""
    found = []
    for override in OverridesParser.create().parse_overrides(own_words(words)):
        if not override.is_sweep_override():
            found.append(str(override.input_line))
        elif override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP:
            found += [f"{override.get_key_element()}={value}" for value in values_of(override, dict)[:1]]
    return found


def expand(words: Sequence[str], choices: Groups = dict) -> Iterator[list[str]]:
    """The overrides of each job of a sweep: every combination of the values.

    >>> list(expand(["attack=badnets,sig", "seed=1"]))
    [['attack=badnets', 'seed=1'], ['attack=sig', 'seed=1']]

    Args:
        choices: group -> its choices, for `glob()`.

    Raises:
        UserError: as `values_of`; or more than `MOST` jobs.
    """
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(words)):
        key = override.get_key_element()
        if override.is_sweep_override():
            axes[key] = [f"{key}={value}" for value in values_of(override, choices)]
        else:
            axes[key] = [str(override.input_line)]
    count = math.prod(len(axis) for axis in axes.values())
    if count > MOST:
        raise UserError(f"-m: {count:,} jobs, expected at most {MOST:,}; give fewer values, or several sweeps")
    return map(list, itertools.product(*axes.values()))


def values_of(override: Override, choices: Groups) -> list[str]:
    """The values that a word of a sweep lists.

    Raises:
        UserError: it lists none, or more than `MOST`; or it is one about Hydra itself.
    """
    line, value = override.input_line, override.value()
    if override.is_hydra_override():
        raise UserError(f"{line}: Hydra's own settings are the sweep's and not a job's; expected one value")
    if not override.is_discrete_sweep():
        raise UserError(
            f"{line}: hydra/sweeper=basic runs every value of a list, and this is none; give a,b,c or range(1,4), or a "
            "sweeper that searches: hydra/sweeper=optuna (pip install hydra-optuna-sweeper)"
        )
    try:
        if isinstance(value, Glob):
            found = list(value.filter(list(choices().get(override.key_or_group, ()))))
        elif isinstance(value, RangeSweep) and isinstance(value.range(), range) and len(value.range()) > MOST:  # type: ignore[arg-type]
            found = [""] * (MOST + 1)
        else:
            found = list(itertools.islice(override.sweep_string_iterator(), MOST + 1))
    except (ValueError, ArithmeticError) as error:  # a step of 0
        raise UserError(f"{line}: {error}") from None
    if not found or len(found) > MOST:
        asked = "a choice of that group that fits" if isinstance(value, Glob) else f"1 to {MOST:,} values"
        raise UserError(f"{line}: expected {asked}, found {'none' if not found else 'more'}")
    return found


def victims_first(jobs: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The jobs, those first that train another victim than all before them, as far as their words tell.

    Jobs that differ in their defense alone share a victim, unless the defense sets rows aside. So workers that start
    together train different victims, and nobody waits for one while there is other work.

    >>> victims_first([("a=1", "defense=ft"), ("a=1", "defense=abl"), ("a=2", "defense=ft"), ("a=2", "defense=abl")])
    [('a=1', 'defense=ft'), ('a=2', 'defense=ft'), ('a=1', 'defense=abl'), ('a=2', 'defense=abl')]
    """
    seen: Counter[tuple[str, ...]] = Counter()
    ranks = []
    for words in jobs:
        attacked = tuple(word for word in words if not word.lstrip("+~").startswith("defense"))
        ranks.append(seen[attacked])
        seen[attacked] += 1
    return [words for _, words in sorted(zip(ranks, jobs, strict=True), key=lambda pair: pair[0])]


def changing_words(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """The words of each job that not all have."""
    counts = Counter(word for words in jobs for word in set(words))
    return [[word for word in words if counts[word] < len(jobs)] for words in jobs]


def quoted(text: Any) -> str:
    """A text as a value that Hydra's grammar reads as it is."""
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"
