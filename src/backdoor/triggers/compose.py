"""Several triggers as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from backdoor.errors import UserError
from backdoor.triggers.base import Shape, Trigger, below


class Sequence(Trigger):
    """Triggers painted one after the other, then clamped and rounded once.

    In between, levels may leave 0..255: a wave that a patch covers later leaves no trace of clamping.

    Args:
        triggers: in the order of painting; a mapping gives them names, so that a command line can reach
            into one (``attack.trigger.triggers.wave.delta=30``).

    Raises:
        UserError: if there is none, or if a member rounds otherwise than the sequence will.
    """

    def __init__(self, triggers: Mapping[str, Trigger] | Iterable[Trigger], **rounding: Any) -> None:
        super().__init__(**rounding)
        members = list(triggers.values() if isinstance(triggers, Mapping) else triggers)
        if not members:
            raise UserError("attack.trigger.triggers: expected at least one trigger, got none; add one")
        for member in members:
            self._agree(member)
        self.triggers = nn.ModuleList(members)
        self.needs = tuple(dict.fromkeys(name for member in members for name in member.needs))
        self.network = any(member.network for member in members)

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        for trigger in self.members():
            x = trigger.paint(x, index)
        return x

    def equipped(self, findings: Mapping[str, Any]) -> Trigger:
        return self._of([trigger.equip(findings) for trigger in self.members()])

    def findings_in(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for place, trigger in enumerate(self.members()):
            found |= trigger.findings_in(below(tensors, f"triggers.{place}"))
        return found

    def check_shape(self, shape: Shape) -> None:
        for trigger in self.members():
            trigger.check(shape)

    def at_test(self) -> Trigger:
        return self._of([trigger.at_test() for trigger in self.members()])

    def _of(self, members: list[Trigger]) -> Sequence:
        return Sequence(
            members,
            rounding=self.rounding,
            overflow=self.overflow,
            quantize=self.quantize,
        )

    def members(self) -> list[Trigger]:
        """The triggers in order."""
        return [cast(Trigger, trigger) for trigger in self.triggers]

    def _agree(self, member: Trigger) -> None:
        """A member's own rounding would never be used: better said than silently dropped."""
        for key, default in (("rounding", "round"), ("overflow", "clip"), ("quantize", False)):
            own, common = getattr(member, key), getattr(self, key)
            if own not in (default, common):
                raise UserError(
                    f"attack.trigger.triggers: expected {key}={common!r} of the sequence in every member,"
                    f" got {own!r} in {type(member).__name__};"
                    f" set {key} on the sequence, which clamps and rounds once"
                )
