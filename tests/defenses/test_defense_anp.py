"""ANP: the min-max by hand, masks on real networks, pruning that changes scales alone, thresholds without test data."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from backdoor.defenses.anp import (
    MaskNeurons,
    find_norms,
    largest_accepted,
    learn_masks,
    prune_neurons,
    scaled,
    split_by_norm,
    worst_case,
)
from backdoor.defenses.anp.threshold import accuracy, sweep
from backdoor.errors import UserError
from backdoor.models import torchvision_net
from backdoor.stages.artifact import load_outcome, save_outcome
from helpers.backdoor import context, poisoned_digits, rates, victim


@pytest.fixture(scope="module")
def attacked():
    state, test = poisoned_digits()
    return replace(state, model=victim(state)), test


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def linear_loss(slopes):
    return lambda weight, bias: (slopes[0] * weight).sum() + (slopes[1] * bias).sum()


@pytest.mark.parametrize("steps", [1, 4])
def test_worst_case_against_a_loop(steps):
    slopes = torch.tensor([[1.0, -2.0, 0.0], [-0.5, 3.0, 1.0]])
    delta, xi = worst_case(linear_loss(slopes), torch.ones(3), eps=0.4, steps=steps, generator=generator())
    start = torch.empty(2, 3).uniform_(-0.4, 0.4, generator=generator())
    for row, found in enumerate((delta, xi)):
        for place in range(3):
            value = start[row, place].item()
            for _ in range(steps):
                slope = slopes[row, place].item()
                value = min(0.4, max(-0.4, value + 0.4 / steps * ((slope > 0) - (slope < 0))))
            assert found[place].item() == pytest.approx(value, abs=1e-6)
    assert not delta.requires_grad


def test_masks_take_the_step_of_the_formula():
    slopes = torch.tensor([[3.0, -2.0], [0.5, 0.0]])
    logits = lambda images, weight, bias: torch.stack([-linear_loss(slopes)(weight, bias), torch.tensor(0.0)])[None]  # noqa: E731
    masks, labels = torch.ones(2), torch.zeros(1, dtype=torch.int64)

    def loss(weight, bias):
        return F.cross_entropy(logits(None, weight, bias), labels)

    expected, velocity, draws = torch.ones(2), torch.zeros(2), generator()
    for _ in range(3):
        delta, xi = worst_case(loss, expected, eps=0.4, steps=1, generator=draws)
        point = expected.clone().requires_grad_()
        value = 0.2 * loss(point, torch.ones(2)) + 0.8 * loss(point + delta, 1 + xi)
        velocity = 0.9 * velocity + torch.autograd.grad(value, point)[0]
        expected = (expected - 0.2 * velocity).clamp(0, 1)
    options = {"lr": 0.2, "momentum": 0.9, "eps": 0.4, "alpha": 0.2, "ascent_steps": 1}
    losses = list(learn_masks(logits, [(None, labels)] * 3, masks, generator=generator(), **options))
    assert len(losses) == 3
    assert torch.allclose(masks, expected)
    assert masks[0] < 1  # what raises the loss is masked
    assert masks[1] == 1  # and what lowers it is not: 1 is the most


def test_scaled_parameters_are_the_formula(attacked):
    model = attacked[0].model
    norms = find_norms(model)
    assert list(norms) == ["backbone.1", "backbone.5", "backbone.9"]
    weight, bias = torch.rand(56, generator=generator()), torch.rand(56, generator=generator())
    found = scaled(norms, weight, bias)
    assert torch.equal(found["backbone.5.weight"], model.backbone[5].weight * weight[8:24])
    assert torch.equal(found["backbone.9.bias"], model.backbone[9].bias * bias[24:])
    images = torch.rand(2, 1, 16, 16)
    ones = torch.ones(56)
    assert torch.equal(functional_call(model, scaled(norms, ones, ones), (images,)), model(images))
    assert [len(part) for part in split_by_norm(weight, norms).values()] == [8, 16, 32]


def test_a_pruned_model_is_the_masked_one(attacked):
    state, test = attacked
    model = copy.deepcopy(state.model)
    norms, keep = find_norms(model), torch.rand(56, generator=generator()) > 0.3
    images = test.images.float() / 255
    masked = functional_call(model, scaled(norms, keep.float(), torch.ones(56)), (images,))
    shifts = [norm.bias.clone() for norm in norms.values()]
    prune_neurons(model, split_by_norm(~keep, norms))
    assert torch.equal(model(images), masked)
    assert all(torch.equal(norm.bias, shift) for norm, shift in zip(norms.values(), shifts, strict=True))


def test_layer_norms_are_masked_too():
    options = {"num_classes": 3, "in_channels": 1, "image_size": 16, "mean": [0.3], "std": [0.4]}
    with torch.device("meta"):
        names = list(find_norms(torchvision_net(name="convnext_tiny", **options)))
        assert len(names) == 23
        with pytest.raises(UserError, match="no BatchNorm, LayerNorm or GroupNorm"):
            find_norms(torchvision_net(name="vgg19", **options))


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_scales_alone_change_and_saved_is_evaluated(attacked, tmp_path, statistics):
    state, test = attacked
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    stage = MaskNeurons(steps=40, batch_size=32, statistics=statistics)
    outcome = stage.run(state, context(), name="mask", work=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert not any(part.training for part in state.model.modules())
    assert all(parameter.requires_grad for parameter in outcome.state.model.parameters())
    found, after = outcome.state.findings, outcome.state.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} <= {
        f"backbone.{n}.weight" for n in (1, 5, 9)
    }
    masks = torch.cat(list(found["neuron_masks"].values()))
    assert 0 <= masks.min() <= masks.max() <= 1
    assert found["pruned_neurons"] == int((masks <= 0.2).sum()) > 0
    assert [row["epoch"] for row in outcome.history] == list(range(1, 11))
    save_outcome(outcome, stage.provides, tmp_path, seconds=1.0)
    loaded, _ = load_outcome(state, tmp_path, context(), stage.provides)
    images = test.images.float() / 255
    assert torch.equal(loaded.state.model(images), outcome.state.model(images))
    tried = list(stage.tried(state, loaded.state))
    assert torch.equal(tried[found["pruning_curve"]["x"].index(0.2)](images), outcome.state.model(images))
    assert stage.figures(loaded.state, tmp_path / "figures", "mask", {})[0].stat().st_size > 1000
    again = stage.run(state, context(), name="mask", work=tmp_path).state.findings["neuron_masks"]
    assert all(torch.equal(part, found["neuron_masks"][name]) for name, part in again.items())


def test_the_backdoor_gets_weaker(attacked, tmp_path):
    state, test = attacked
    clean, asr = rates(state.model, test)
    assert clean > 0.9
    assert asr > 0.9
    pruned = MaskNeurons(steps=100, batch_size=32).run(state, context(), name="mask", work=tmp_path).state.model
    assert rates(pruned, test)[0] > clean - 0.15
    assert rates(pruned, test)[1] < asr - 0.15  # of 56 neurons: a wide network loses all of it


def test_without_a_threshold_held_out_rows_choose_it(attacked, tmp_path):
    stage = MaskNeurons(steps=40, batch_size=32, threshold=None, max_drop=0.1)
    curve = stage.run(attacked[0], context(), name="mask", work=tmp_path).state.findings["pruning_curve"]
    assert curve["lowest"] == pytest.approx(curve["before"] - 0.1)
    accepted = [cut for cut, value in zip(curve["x"], curve["c_acc"], strict=True) if value >= curve["lowest"] - 1e-9]
    assert curve["chosen"] == accepted[-1]


def test_thresholds_against_a_loop(attacked):
    state, test = attacked
    norms = find_norms(state.model)
    masks = split_by_norm(torch.rand(56, generator=generator()), norms)
    cuts = [0.0, 0.1, 0.1001, 0.5, 0.9]
    counts, accuracies = sweep(state.model, masks, test, cuts)
    for cut, count, value in zip(cuts, counts, accuracies, strict=True):
        model = copy.deepcopy(state.model)
        prune_neurons(model, {name: part <= cut for name, part in masks.items()})
        assert count == sum(int((part <= cut).sum()) for part in masks.values())
        assert value == accuracy(model, test)
    assert largest_accepted([0.0, 0.1, 0.2, 0.3], [0.9, 0.7, 0.9, 0.5], 0.86) == 0.2
    assert largest_accepted([0.0, 0.1], [0.7, 0.5], 0.86) is None


def test_nothing_is_pruned_where_nothing_may_be(attacked, tmp_path):
    state, test = attacked
    said = []
    stage = MaskNeurons(steps=3, lr=1e-6, batch_size=8)  # the masks stay where they were
    found = stage.run(state, context(say=said.append), name="mask", work=tmp_path).state
    assert found.findings["pruned_neurons"] == 0
    assert "none of 56 neurons" in said[0]
    assert rates(found.model, test) == rates(state.model, test)
    assert len(MaskNeurons(steps=50).learn(state.model, state.reserved, context(max_batches=2), "mask")[1]) == 2


def test_bad_input(attacked, tmp_path):
    state, _ = attacked
    few = replace(state, reserved=state.reserved.take(torch.arange(20)))
    with pytest.raises(UserError, match=r"20 trusted rows.*hold out 4; expected at least 25"):
        MaskNeurons(threshold=None).run(few, context(), name="mask", work=tmp_path)
    MaskNeurons(steps=1).run(few, context(), name="mask", work=tmp_path)  # a fixed threshold needs no such rows
    broken = context().make_model()
    nn.init.constant_(broken.backbone[0].weight, math.nan)
    with pytest.raises(UserError, match="stage mask: the loss became nan"):
        MaskNeurons(steps=2).run(replace(state, model=broken), context(), name="mask", work=tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("lr", -1, "lr=-1: expected a number of at least 0"),
        ("eps", 1.5, "eps=1.5"),
        ("alpha", math.nan, "alpha=nan"),
        ("steps", 0, "steps=0: expected a whole number"),
        ("ascent_steps", 1.5, "ascent_steps=1.5"),
        ("threshold", 1, "threshold=1: .*or null"),
        ("statistics", "bach", "did you mean 'batch'"),
        ("augment", "flop", "did you mean 'flip'"),
        ("max_drop", 2, "max_drop=2"),
        ("validation", 0, "validation=0"),
    ],
)
def test_settings_are_refused(setting, value, match):
    with pytest.raises(UserError, match=match):
        MaskNeurons(**{setting: value})
