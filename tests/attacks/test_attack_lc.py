"""LC: PGD inside its ball, the corners, labels untouched, and a ratio that the class cannot fill."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from backdoor.attacks import CleanLabel, PoisonGroup, PoisonOnly, PoisonPlan
from backdoor.attacks.lc import AdversarialClassifier, Perturb, Perturbed, pgd, to_pixels
from backdoor.data.loader import Batch
from backdoor.errors import UserError
from backdoor.stages import Fit
from backdoor.triggers import AdditiveCorners
from helpers.command import QUICK, read_json
from helpers.contexts import small_context
from helpers.observing import hearing
from helpers.surrogate import NearestMean, digits, tiny_cnn
from helpers.trigger import plain, sums


def test_pgd_on_a_linear_model_goes_to_the_corner_of_the_ball_that_hurts_most():
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    images = torch.tensor([0.5, 0.5, 0.02, 0.5]).view(1, 1, 2, 2)
    found = pgd(lambda x: x.flatten(1) @ weight.T, images, torch.zeros(1).long(), eps=0.1, step=0.03, steps=10)
    # Class 0 is right: its logit falls by going down where its weight is positive, no further than 0.
    assert torch.allclose(found.flatten(), torch.tensor([0.4, 0.6, 0.0, 0.5]), atol=1e-6)


def test_pgd_stays_in_its_ball_and_raises_the_loss_of_every_image():
    state = digits(60)
    model, labels = NearestMean(state), state.train.labels
    images = state.train.images.float() / 255
    found = pgd(model, images, labels, eps=0.2, step=0.05, steps=10)
    assert (found - images).abs().max() <= 0.2 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    before, after = (F.cross_entropy(model(x), labels, reduction="none") for x in (images, found))
    assert bool((after > before).all())
    start = torch.full_like(images, -0.5)  # outside the ball: brought back first
    assert (pgd(model, images, labels, eps=0.2, step=0.05, steps=1, start=start) - images).abs().max() <= 0.2 + 1e-6


def test_pgd_does_not_depend_on_the_batch():
    state, model = digits(6), tiny_cnn()
    images, labels = state.train.images.float() / 255, state.train.labels
    whole = pgd(model, images, labels, eps=0.1, step=0.02, steps=5)
    for row in range(6):
        alone = pgd(model, images[row : row + 1], labels[row : row + 1], eps=0.1, step=0.02, steps=5)
        assert (whole[row] - alone[0]).abs().mean() < 1e-3  # the sign of a gradient near 0 may flip


def test_rounding_stays_in_the_ball_whatever_its_radius():
    images = torch.tensor([0, 1, 100, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    moved = torch.tensor([0.6, 1.6, 98.4, 254.5]).view(1, 1, 2, 2) / 255
    assert to_pixels(moved, images, 1.6).flatten().tolist() == [1, 2, 99, 254]
    assert to_pixels(moved, images, 0.6).equal(images)


@pytest.mark.parametrize("wrong", [{"eps": 0}, {"eps": 256}, {"step": -1}, {"steps": 0}, {"steps": 2.5}])
def test_settings_that_pgd_cannot_use_are_refused(wrong):
    with pytest.raises(UserError, match=rf"{next(iter(wrong))}=.*expected"):
        Perturb(target=0, **wrong)
    with pytest.raises(UserError, match=rf"{next(iter(wrong))}=.*expected"):
        AdversarialClassifier(model=tiny_cnn(), state=digits(10), lr=0.1, **wrong)


def test_corners_by_hand():
    out = AdditiveCorners(amplitude=40)(plain(128))
    left = [[168, 88, 88], [88, 168, 88], [168, 88, 168]]
    right = [row[::-1] for row in left]
    for rows in (slice(0, 3), slice(29, 32)):
        assert out[0, 0, rows, :3].tolist() == left
        assert out[0, 2, rows, 29:].tolist() == right
    assert sums(out) == [131072 + 4 * 40 * (4 - 5)] * 3
    assert int((out != 128).any(1).sum()) == 36
    full = AdditiveCorners()(plain(128))
    assert set(full[full != 128].tolist()) == {0, 255}
    assert int((AdditiveCorners()(plain(128, 64)) != 128).any(1).sum()) == 4 * 36
    stronger = AdditiveCorners(amplitude=16, test_amplitude=64).at_test()
    assert stronger(plain(128)).max() == 192
    with pytest.raises(UserError, match="four 3x3 corners"):
        AdditiveCorners(margin=2).check((3, 8, 8))


@pytest.fixture(scope="module")
def perturbed():
    """The state after PGD on the zeros among the digits."""
    state = digits()
    state = replace(state, model=NearestMean(state))
    stage = Perturb(target=0, eps=64.5, step=8, steps=20, batch_size=7)
    return stage.run(state, small_context(), name="perturb", work=None).state


def test_only_the_target_class_is_perturbed_inside_the_ball(perturbed):
    found, train = perturbed.findings["perturbed"], perturbed.train
    zeros = train.labels == 0
    assert found["images"].dtype == torch.uint8
    assert torch.equal(found["index"], train.index[zeros])
    change = (found["images"].int() - train.images[zeros].int()).abs()
    assert change.max() == 64
    assert perturbed.findings["recognised_after"] < 0.3 < perturbed.findings["recognised_before"]
    assert all(parameter.requires_grad for parameter in perturbed.model.parameters())


def test_the_result_does_not_depend_on_the_batch_size(perturbed):
    whole = Perturb(target=0, eps=64.5, step=8, steps=20, batch_size=1000)
    again = whole.run(replace(perturbed, findings={}), small_context(), name="perturb", work=None).state
    assert torch.equal(again.findings["perturbed"]["images"], perturbed.findings["perturbed"]["images"])


def test_a_class_without_images_is_refused(perturbed):
    ones = perturbed.train.take(perturbed.train.labels == 1)
    with pytest.raises(UserError, match="no train image of class 0"):
        Perturb(target=0).run(replace(perturbed, train=ones), small_context(), name="perturb", work=None)


def attack(ratio: float = 0.5, ratio_of: str = "class") -> PoisonOnly:
    label_map, trigger = CleanLabel(target=0), Perturbed(patch=AdditiveCorners(amplitude=100))
    group = PoisonGroup(ratio, label_map, trigger, ratio_of, "target")
    return PoisonOnly(name="lc", groups={"poison": group}, label_map=label_map, trigger=trigger)


def test_poison_is_the_perturbed_image_with_corners_and_its_own_label(perturbed):
    train = perturbed.train.take(torch.arange(len(perturbed.train)))
    clean, poisoner = train.images.clone(), attack()
    poisoner.check(10, (1, 16, 16))  # before the stages have run
    poisoner.equip(perturbed.findings, None)
    plan = poisoner.plan(train.labels, 10, seed=0)
    after = poisoner.poison(train, plan)
    assert torch.equal(after.labels, perturbed.train.labels)
    assert set(after.labels[plan.rows].tolist()) == {0}
    found = perturbed.findings["perturbed"]
    at = torch.searchsorted(found["index"], train.index[plan.rows])
    expected = AdditiveCorners(amplitude=100)(found["images"][at])
    assert torch.equal(after.images[plan.rows], expected)
    assert bool((expected != clean[plan.rows]).flatten(1).any(1).all())
    assert torch.equal(after.images[~plan.mask()], clean[~plan.mask()])


def test_at_test_time_there_are_only_the_corners_whatever_the_index(perturbed):
    poisoner = attack()
    poisoner.equip(perturbed.findings, None)
    test = perturbed.train.take(torch.arange(len(perturbed.train)))  # its index is that of perturbed train images
    triggered = poisoner.attack_set(test, 10).split
    assert torch.equal(triggered.images, AdditiveCorners(amplitude=100)(test.images[test.labels != 0]))
    assert bool(triggered.labels.ne(0).all())


def test_rows_that_were_not_perturbed_get_the_patch_alone_and_other_shapes_are_refused(perturbed):
    trigger = Perturbed(patch=AdditiveCorners()).equip(perturbed.findings)
    images = perturbed.train.images[:5]
    assert torch.equal(trigger(images, torch.full((5,), 10**9)), AdditiveCorners()(images))
    with pytest.raises(UserError, match=r"\(1, 16, 16\) were perturbed, got \(1, 20, 20\)"):
        trigger(torch.zeros(1, 1, 20, 20, dtype=torch.uint8), torch.zeros(1).long())
    with pytest.raises(ValueError, match="index"):
        trigger(images)
    with pytest.raises(UserError, match="needs perturbed"):
        Perturbed(patch=AdditiveCorners()).equip({})


def test_adversarial_training_sees_images_in_the_ball_and_leaves_batchnorm_alone():
    state, model = digits(40), tiny_cnn()
    module = AdversarialClassifier(model=model, state=state, lr=0.1, eps=16, step=8, steps=2, seed=1)
    module.train()
    batch = Batch(state.train.images[:20].float() / 255, state.train.labels[:20], torch.arange(20))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hard = module.perturb(batch)
    assert torch.equal(hard, module.perturb(batch))  # seeded by the step
    assert 0 < (hard - batch.images).abs().max() <= 16 / 255 + 1e-6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    model.eval()
    easy, difficult = (F.cross_entropy(model(x), batch.labels) for x in (batch.images, hard))
    assert difficult > easy


class Killed(Exception):
    """Stands for a process that dies."""


def test_interrupted_adversarial_training_goes_on_to_the_same_weights(tmp_path):
    def die(row):
        if row["epoch"] == 2 and not interrupted:
            interrupted.append(row)
            raise Killed

    module = partial(AdversarialClassifier, lr=0.05, eps=16, step=8, steps=2)
    state, weights, interrupted = digits(60), [], []
    context = replace(small_context(checkpoint_s=0), new_model=tiny_cnn)
    for name in ("killed", "whole"):
        stage = Fit(module=module, epochs=3, batch_size=20)
        if name == "killed":
            with pytest.raises(Killed), hearing(die):
                stage.run(state, context, name="surrogate", work=tmp_path / name)
            assert (tmp_path / name / "resume.ckpt").exists()
        outcome = Fit(module=module, epochs=3, batch_size=20).run(
            state, context, name="surrogate", work=tmp_path / name
        )
        assert [row["epoch"] for row in outcome.history] == [1, 2, 3]
        weights.append(outcome.state.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_ratio_over_the_class_share_is_refused_with_the_largest_before_anything_is_trained(command, tmp_path):
    words = ("attack=lc", "defense=none", "attack.ratio=0.2", "attack.ratio_of=train")
    status, out, said = command(*QUICK, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status != 0
    assert "142 are eligible; the largest ratio is 0.0988" in out + said
    assert "surrogate" not in out


@pytest.mark.parametrize("surrogate", ["robust_surrogate", "surrogate"])
def test_the_run_keeps_the_perturbed_images_beside_its_plan(command, tmp_path, surrogate):
    words = ("attack=lc", "defense=none", f"attack/part@attack.stages.surrogate={surrogate}")
    status, _, said = command(*QUICK, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    kept, plan = load_file(tmp_path / "run" / "trigger.safetensors"), PoisonPlan.load(tmp_path / "run" / "plan.npz")
    assert kept["images"].shape == (142, 3, 32, 32)
    assert kept["images"].dtype == torch.uint8
    assert len(plan.rows) == 71
    assert bool(torch.isin(plan.rows, kept["index"]).all())
    steps = {step["name"]: step["findings"] for step in read_json(tmp_path / "run")["crafting"]}
    assert set(steps) == {"surrogate", "perturb"}
    assert "recognised_after" in steps["perturb"]
