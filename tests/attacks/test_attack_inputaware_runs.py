"""Input-aware: a whole attack that works, and a run whose saved trigger is the one measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

from backdoor.attacks import AllToOne, PoisonGroup, PoisonPlan
from backdoor.attacks.controlled import CrossAccuracy
from backdoor.attacks.inputaware import HandOver, InputAware, InputAwareTraining, LearnMask, MaskTraining
from backdoor.attacks.inputaware.networks import Generator
from backdoor.models import small_cnn
from backdoor.stages import Fit
from backdoor.state import State
from helpers.command import QUICK, read_json
from helpers.contexts import small_context
from helpers.surrogate import digits, tiny_cnn

# The same attack with small networks on small images.
SMALL = ("data.image_size=16", "attack.stages.mask.width=4", "attack.stages.victim.module.width=4")


@pytest.mark.timeout(600)
def test_own_triggers_work_and_other_images_triggers_do_not(tmp_path):
    """A whole attack on four classes of digits at 16x16, under a minute on a core: cross accuracy over 80 %."""
    everything = digits(1797)
    state = State(everything.train.take(everything.train.labels < 4), 4)
    context = small_context()

    def mask(**common):
        return MaskTraining(lr=0.01, schedule="step", milestones=[0.4, 0.8], **common)

    state = (
        LearnMask(module=mask, width=8, epochs=20, batch_size=32)
        .run(state, context, name="mask", work=tmp_path / "mask")
        .state
    )
    assert 0.02 < state.findings["mask_density"] < 0.1

    def module(model, state):
        model = small_cnn(num_classes=4, in_channels=1, image_size=16, mean=[0.3], std=[0.4], width=24)
        common = {"lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine", "pattern_schedule": "cosine"}
        poison = PoisonGroup(1 / 3, AllToOne(target=0))
        return InputAwareTraining(model=model, state=state, poison=poison, width=12, lambda_div=0.3, **common)

    trained = []

    def kept(**parts):
        torch.manual_seed(0)
        trained.append(module(**parts))
        return trained[-1]

    parts = {"cross": CrossAccuracy, "hand_over": HandOver}
    stage = Fit(module=kept, epochs=72, batch_size=64, callbacks=parts, requires=["mask_net"])
    state = stage.run(state, context, name="victim", work=tmp_path / "victim").state
    assert state.findings["cross_accuracy"] > 0.8

    model = trained[-1].model.eval()
    others = state.train.take(state.train.labels != 0)
    with torch.no_grad():
        triggered = InputAware().equip(state.findings)(others.images) / 255
        assert (model(triggered).argmax(1) == 0).float().mean() > 0.7
        assert (model(others.images / 255).argmax(1) == others.labels).float().mean() > 0.95


def test_gradients_are_zeroed_or_add_up_over_the_steps(tmp_path):
    """Nothing moves at rate 0, so that two steps' gradients are those of the first plus those of the second."""

    def after(steps: int, zero: bool) -> list[torch.Tensor]:
        mask = Generator.fresh(digits(60).train, out=1, width=4, seed=5)
        state = replace(digits(60), findings={"mask_net": mask.state_dict()})
        module = InputAwareTraining(
            model=tiny_cnn(),
            state=state,
            poison=PoisonGroup(0.3, AllToOne(target=0)),
            width=4,
            lr=0.0,
            pattern_lr=0.0,
            pattern_zero_grad=zero,
        )
        work = tmp_path / f"{steps}-{zero}"
        work.mkdir()
        small_context(max_batches=steps).fit(module, state.train, name="victim", work=work, epochs=1, batch_size=20)
        return [parameter.grad for parameter in module.pattern_net.parameters()]

    first, second, both = after(1, True), after(2, True), after(2, False)
    for one, two, total in zip(first, second, both, strict=True):
        torch.testing.assert_close(one + two, total, rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(two, total) for two, total in zip(second, both, strict=True))


def test_a_run_against_a_defense_trains_once_and_its_trigger_is_the_saved_one(command, tmp_path, cache_dir):
    folder = tmp_path / "runs"
    words = (*QUICK, *SMALL, "attack=inputaware", "defense=abl")
    for name, victim in (("first", "trained"), ("second", "hit")):
        status, _, said = command(*words, f"hydra.run.dir={folder / name}")
        assert status == 0, said
        assert read_json(folder / name, "status.json") == {"state": "done", "victim": victim}
    first, second = (read_json(folder / name) for name in ("first", "second"))
    assert [stage["name"] for stage in first["stages"]] == ["victim", "isolate", "finetune", "control", "unlearn"]
    assert [stage["asr"] for stage in first["stages"]] == [stage["asr"] for stage in second["stages"]]
    mask, victim = first["crafting"]
    assert set(mask["findings"]) == {"mask_density"}
    assert set(victim["findings"]) == {"cross_accuracy"}
    plan = PoisonPlan.load(folder / "first" / "plan.npz")
    assert plan.roles == ("poison", "cross")
    assert [int((plan.role == role).sum()) for role in (0, 1)] == [144, 144]
    isolated = next(stage for stage in first["stages"] if stage["name"] == "isolate")["detection"]
    assert isolated["poisoned"] == 144  # cross rows, whose labels are true, are no poison

    cfg = OmegaConf.load(folder / "first" / "config.yaml")
    data = instantiate(cfg.data, _convert_="all").load(cache_dir, progress=False)
    saved, nets = load_file(folder / "first" / "trigger.safetensors"), {}
    for name, value in saved.items():
        net, _, key = name.partition(".")
        nets.setdefault(net, {})[key] = value
    sets = []
    for _ in range(2):
        attack = instantiate(cfg.attack, _convert_="all")
        attack.trigger = attack.trigger.equip(nets)
        sets.append(attack.attack_set(data.test.open(), 10).split)
    assert torch.equal(sets[0].images, sets[1].images)
    assert not torch.equal(sets[0].images, data.test.open().images[data.test.open().labels != 0])
