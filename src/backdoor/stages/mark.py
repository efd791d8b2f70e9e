"""The stage that turns a score into groups, by exact ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from backdoor.checking.ranges import SomeShare
from backdoor.data.loader import mix
from backdoor.errors import UserError
from backdoor.stages.base import Outcome, Stage
from backdoor.state import State
from backdoor.training.context import RunContext


class Mark(Stage):
    """The rows with the highest scores are suspect, those with the lowest trusted; the rest is neither.

    Args:
        score: its name.
        suspect, trusted: shares of the train set, together at most 1. Ties are broken at random, by the run's seed.
        control, enabled: see `Stage`.

    Provides:
        the groups `suspect` and `trusted`, bool (N,).
    """

    provides = frozenset({"suspect", "trusted"})

    def __init__(
        self, *, score: str, suspect: SomeShare, trusted: SomeShare, control: bool = False, enabled: bool = True
    ) -> None:
        for setting, share in (("suspect", suspect), ("trusted", trusted), ("suspect + trusted", suspect + trusted)):
            if not isinstance(share, int | float) or not 0 < share <= 1:
                raise UserError(f"{setting}={share}: expected a share above 0 and up to 1")
        self.score, self.shares = score, (suspect, trusted)
        self.requires = frozenset({score})
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with both groups.

        Raises:
            UserError: all scores are equal.
        """
        scores = state.scores[self.score]
        if len(scores) == 0 or bool(scores.eq(scores[0]).all()):
            raise UserError(
                f"stage {name}: all scores of {self.score} are equal, so no row can be told from another; train the "
                "stages before it longer, or with a lower lr"
            )
        suspect, trusted = (max(1, int(share * len(scores))) for share in self.shares)
        shuffled = torch.randperm(len(scores), generator=torch.Generator().manual_seed(mix(context.seed, 0x3A)))
        ranked = shuffled[scores[shuffled].argsort(stable=True)]
        groups = {key: torch.zeros(len(scores), dtype=torch.bool) for key in ("suspect", "trusted")}
        groups["trusted"][ranked[:trusted]] = True
        groups["suspect"][ranked[len(ranked) - suspect :]] = True
        return Outcome(replace(state, groups={**state.groups, **groups}))
