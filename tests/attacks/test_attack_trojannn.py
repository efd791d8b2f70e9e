"""TrojanNN: the neurons with the strongest links, a trigger inside its mask that excites them, no wrap-around."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from backdoor.attacks.trojannn import ExciteNeurons, Mask, NeuronTrigger, excite, strongest_neurons
from backdoor.errors import UserError
from helpers.command import QUICK
from helpers.contexts import small_context
from helpers.surrogate import NearestMean, digits, tiny_cnn


def test_strongest_neurons_by_hand():
    weight = torch.tensor([[1.0, -3.0, 0.0, 2.0], [1.0, 3.0, 0.5, -2.0], [-3.0, 0.0, 0.0, 2.0]])
    assert strongest_neurons(weight, 3).tolist() == [1, 3, 0]  # sums of |w|: 5, 6, 0.5, 6
    assert strongest_neurons(torch.ones(2, 3), 2).tolist() == [0, 1]


def test_masks_lie_where_they_are_asked_to_and_keep_their_share():
    square = Mask("square", 3, "bottom_right", 1).draw((3, 32, 32))
    assert square.nonzero().min(0).values.tolist() == [28, 28]
    assert int(square.sum()) == 9
    disc = Mask("disc", 5, "top_left", 0).draw((1, 8, 10))
    assert disc[:5, :5].int().tolist() == [
        [0, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 0],
    ]
    assert int(disc.sum()) == 21
    for side in (32, 64, 224):
        assert float(Mask().draw((3, side, side)).float().mean()) == pytest.approx(0.07, abs=0.01)


@pytest.mark.parametrize("wrong", [{"form": "apple"}, {"anchor": "left"}, {"size": 0}, {"margin": -1}])
def test_masks_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(UserError, match=rf"attack\.trigger\.mask\.{next(iter(wrong))}"):
        Mask(**wrong)


def test_a_mask_larger_than_the_images_is_refused_before_anything_is_trained(command, tmp_path):
    with pytest.raises(UserError, match="fits 32x32 images, got 40x40"):
        NeuronTrigger(mask=Mask(size=40)).check((3, 32, 32))
    words = ("attack=trojannn", "defense=none", "attack.trigger.mask.size=40")
    status, out, said = command(*QUICK, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status != 0
    assert "got 40x40" in said
    assert "surrogate" not in out


def test_excite_goes_to_the_bound_that_the_gradient_points_to_and_not_outside_the_mask():
    weight = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    mask = torch.tensor([[True, True], [False, True]])
    settings = {"channels": 1, "target": 100.0, "start": 128.0, "bound": 50.0, "step": 20.0}
    found = excite(lambda x: (x[:, 0] * weight).sum((1, 2))[:, None], mask, **settings, steps=10)
    assert found.tolist() == [[[178, 78], [0, 178]]]
    none = excite(lambda x: x.sum((1, 2, 3))[:, None], mask, **settings, steps=0)
    assert none.tolist() == [[[128, 128], [0, 128]]]


def test_excite_stops_at_the_target_and_keeps_the_best_step():
    mask, seen = torch.ones(1, 1).bool(), []

    def activation(images):
        seen.append(images.item() * 255)
        return images.flatten(1) * 255

    settings = {"channels": 1, "start": 100.0, "bound": 100.0, "step": 7.0, "steps": 50}
    assert excite(activation, mask, target=128.0, **settings).item() == 128
    assert seen == pytest.approx([100, 107, 114, 121, 128])
    assert excite(activation, mask, target=130.0, **settings).item() == 128  # then it swings: 135, 128, 135 ...


@pytest.mark.parametrize("channels", [1, 3])
def test_the_trigger_excites_the_neurons_of_a_network(channels):
    state = replace(digits(100, channels=channels), model=tiny_cnn(channels))
    stage = ExciteNeurons(mask=Mask(size=0.5), steps=40, step=10, bound=120)
    found = stage.run(state, small_context(), name="excite", work=None).state.findings
    pattern, inside = found["pattern"], Mask(size=0.5).draw((channels, 16, 16))
    assert pattern.shape == (channels, 16, 16)
    assert bool((pattern[:, ~inside] == 0).all())
    assert pattern.min() >= 0
    assert pattern.max() <= 255
    assert torch.equal(pattern, pattern.round())
    assert found["neurons"] == strongest_neurons(state.model.head.weight, 2).tolist()
    black, chosen = torch.zeros(1, channels, 16, 16), found["neurons"]
    flat = 128 / 255 * inside.float().expand(1, channels, 16, 16)
    rest, begun, reached = (
        float(state.model.features(x)[:, chosen].detach().mean()) for x in (black, flat, pattern[None] / 255)
    )
    assert reached > max(begun, rest)
    assert found["activation_alone"] == pytest.approx(reached, rel=1e-4)
    assert found["activation_after"] > found["activation_before"]


def test_the_sum_saturates_where_the_reference_code_wraps():
    mask = Mask("square", 2, "bottom_right", 0)
    pattern = torch.zeros(1, 4, 4)
    pattern[:, 2:, 2:] = 200
    trigger = NeuronTrigger(mask=mask).equip({"pattern": pattern})
    out = trigger(torch.full((1, 1, 4, 4), 100, dtype=torch.uint8))
    assert bool((out[..., 2:, 2:] == 255).all())  # not 300 - 256
    assert bool((out[..., :2, :] == 100).all())


def test_what_the_stage_cannot_use_is_refused():
    for wrong in ({"neurons": 0}, {"steps": 1.5}, {"bound": 0}, {"step": 300}, {"start": "white"}):
        with pytest.raises(UserError, match=rf"{next(iter(wrong))}=.*expected"):
            ExciteNeurons(mask=Mask(), **wrong)
    state = digits(20)
    stage, wide = ExciteNeurons(mask=Mask()), ExciteNeurons(mask=Mask(), neurons=33)
    with pytest.raises(UserError, match="expected a model with features and a linear head, got NearestMean"):
        stage.run(replace(state, model=NearestMean(state)), small_context(), name="excite", work=None)
    with pytest.raises(UserError, match="neurons=33: expected at most 32"):
        wide.run(replace(state, model=tiny_cnn()), small_context(), name="excite", work=None)
