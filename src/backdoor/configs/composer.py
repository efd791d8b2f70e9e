"""The configs of a sweep's jobs: jobs that differ in plain values alone share what Hydra composes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from backdoor.configs.command import Command

PLAIN = (bool, int, float, str, type(None))


class Composer:
    """Composes jobs of one command; about 0.1 s for each combination of choices, a tenth of that for other values.

    Args:
        command: the sweep's; its words do not count.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self.bases: dict[tuple[str, ...], DictConfig] = {}
        self.parser = OverridesParser.create()
        self.groups: frozenset[str] = frozenset()

    def compose(self, words: Sequence[str]) -> DictConfig:
        """The config of one job, with its `hydra` node; raises what Hydra raises."""
        if not self.groups:
            first = self.command.compose(words)
            self.groups = frozenset(str(name).partition("@")[0] for name in first.hydra.runtime.choices)
        overrides = self.parser.parse_overrides(list(words))
        values = [one for one in overrides if self.is_value(one)]
        choices = tuple(str(one.input_line) for one in overrides if not self.is_value(one))
        if choices not in self.bases:
            try:
                self.bases[choices] = self.command.compose(choices)
            except Exception:  # perhaps a value is needed; else the words themselves have the fault
                return self.command.compose(words)
        base = self.bases[choices]
        if "override_dirname" in str(OmegaConf.to_container(base.hydra.sweep, resolve=False)):
            return self.command.compose(words)
        return self.with_values(base, values, words)

    def is_value(self, word: Override) -> bool:
        """Whether it sets one plain value of the job and chooses nothing."""
        key = word.key_or_group
        plain = word.package is None and not (word.is_add() or word.is_force_add() or word.is_delete())
        return (
            plain
            and key not in self.groups
            and not key.startswith("hydra.")
            and "/" not in key
            and not word.is_sweep_override()
            and isinstance(word.value(), PLAIN)
        )

    def with_values(self, base: DictConfig, values: Sequence[Override], words: Sequence[str]) -> DictConfig:
        """A copy of `base` with the values in it."""
        whole = copy.deepcopy(base)
        try:
            for one in values:
                OmegaConf.update(whole, one.key_or_group, one.value())
        except OmegaConfBaseException:
            return self.command.compose(words)  # raises with Hydra's words
        with read_write(whole), open_dict(whole):
            whole.hydra.overrides.task = [word for word in words if not word.lstrip("+~").startswith("hydra")]
        return whole
