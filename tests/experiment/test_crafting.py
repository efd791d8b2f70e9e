"""What an attacker makes first: run once, stored, and handed to the triggers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backdoor.attacks import AllToOne, CleanLabel, Means, PoisonGroup, PoisonOnly
from backdoor.data import Digits
from backdoor.errors import UserError
from backdoor.experiment.attacker import craft
from backdoor.stages import Outcome, Stage, Step
from backdoor.store.store import Store
from backdoor.triggers.additive import Additive
from backdoor.triggers.base import Trigger
from backdoor.triggers.compose import Sequence
from helpers.contexts import small_context

MEAN, STD = (0.3, 0.3, 0.3), (0.4, 0.4, 0.4)


class MeanImage(Stage):
    """A stage: the mean train image, as a bare tensor, inside a mapping, and its mean as a number."""

    requires, provides = frozenset(), frozenset({"pattern", "network", "level"})
    ran = 0

    def run(self, state, context, *, name, work) -> Outcome:
        type(self).ran += 1
        assert state.model is None
        assert state.reserved is None
        mean = state.train.images.float().mean(0)
        found = {"pattern": mean, "network": {"head.weight": mean[0], "bias": mean[1]}, "level": float(mean.mean())}
        return Outcome(replace(state, findings={**state.findings, **found}))


class Ghost(Trigger):
    """Half of the found pattern is added."""

    needs = ("pattern", "network")

    def equipped(self, findings) -> Trigger:
        ready = self._changed(needs=())
        ready.register_buffer("pattern", findings["pattern"])
        assert set(findings["network"]) == {"head.weight", "bias"}
        return ready

    def paint(self, x, index):
        return x + self.pattern / 2


class SeedSeen(MeanImage):
    """A stage: the seed it is given, and the first weight of the model that it would train."""

    provides = frozenset({"seed", "weight"})

    def run(self, state, context, *, name, work) -> Outcome:
        weight = next(context.make_model().parameters()).detach().flatten()[:3]
        return Outcome(replace(state, findings={"seed": float(context.seed), "weight": weight}))


def attack(trigger: Trigger, stages=None) -> PoisonOnly:
    to_zero = AllToOne(target=0)
    group = PoisonGroup(ratio=0.1, label_map=to_zero, trigger=trigger)
    return PoisonOnly(name="ghost", groups={"poison": group}, label_map=to_zero, trigger=trigger, stages=stages)


@pytest.fixture
def digits(cache_dir: Path):
    return Digits(name="digits", mean=MEAN, std=STD).load(cache_dir, progress=False)


def crafted(tmp_path: Path, data, stage):
    steps = [Step("mean", stage, {"stage": "mean"})]
    return craft(steps, data.train.open(), data, Store(tmp_path), small_context(), {"seed": 0})


def test_findings_reach_the_trigger_and_come_from_the_store_the_second_time(tmp_path, digits):
    MeanImage.ran = 0
    first, second = crafted(tmp_path, digits, MeanImage()), crafted(tmp_path, digits, MeanImage())
    assert MeanImage.ran == 1
    assert second.steps[0].hit
    assert second.findings["level"] == first.findings["level"] > 0
    train, test = digits.train.open(), digits.test.open()
    clean = train.images.clone()
    with_stage = attack(Sequence([Ghost()]), {"mean": MeanImage()})
    poisoned = with_stage.prepare(digits, train, test, Means(0, tmp_path, second.findings))
    rows = poisoned.plan.rows
    expected = (clean[rows].float() + clean.float().mean(0) / 2 + 0.5).clamp(max=255).to(torch.uint8)
    assert torch.equal(poisoned.train.images[rows], expected)
    assert torch.equal(poisoned.tensors["triggers.0.pattern"], clean.float().mean(0))
    # What a run keeps of an equipped trigger is enough to equip a new one, also inside of another.
    found = Sequence([Additive()]).findings_in({"triggers.0.pattern": torch.ones(3, 2, 2)})
    assert torch.equal(found["pattern"], torch.ones(3, 2, 2))


def test_an_attack_without_the_stage_that_its_trigger_needs_says_so(tmp_path, digits):
    with pytest.raises(UserError, match=r"Ghost needs pattern, network.*attack\.stages"):
        attack(Ghost()).prepare(digits, digits.train.open(), digits.test.open(), Means(0, tmp_path))


def test_other_clean_data_make_another_artifact(tmp_path, digits):
    MeanImage.ran = 0
    crafted(tmp_path, digits, MeanImage())
    steps = [Step("mean", MeanImage(), {"stage": "mean"})]
    fewer = digits.train.open().take(torch.arange(100))
    craft(steps, fewer, digits, Store(tmp_path), small_context(), {"seed": 0})
    assert MeanImage.ran == 2


def test_a_stage_named_victim_gives_the_defense_a_model():
    plain, controlled = attack(Ghost()), attack(Ghost(), {"victim": MeanImage()})
    assert plain.inputs == frozenset()
    assert controlled.inputs == {"model"}


def test_the_attackers_draws_are_not_the_victims(tmp_path, digits):
    """Else a surrogate would begin at the victim's own initial weights."""
    seen, victim = crafted(tmp_path, digits, SeedSeen()).findings, small_context()
    assert seen["seed"] != victim.seed
    assert not torch.allclose(seen["weight"], next(victim.make_model().parameters()).flatten()[:3])
    assert crafted(tmp_path / "again", digits, SeedSeen()).findings["seed"] == seen["seed"]


def test_a_trigger_for_clean_labels_refuses_a_map_that_changes_them():
    class Hardening(Ghost):
        clean_label = True

    with pytest.raises(UserError, match=r"attack\.label_map: Hardening.*AllToOne changes it"):
        attack(Hardening())
    PoisonGroup(0.1, CleanLabel(target=0), Hardening(), eligible="target")
