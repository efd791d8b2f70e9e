"""NAD: attention by hand, the loss against loops, which layers are compared, and a teacher that leads."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from backdoor.defenses.nad import AttentionDistillation, attention, attention_layers, captured, distillation_loss
from backdoor.errors import UserError
from backdoor.models import WideResNet
from backdoor.stages import Fit
from backdoor.training import Classifier
from helpers.contexts import same, small_context
from helpers.surrogate import digits, tiny_cnn


def test_attention_by_hand():
    maps = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, -1.0]]]])
    assert torch.allclose(attention(maps), torch.tensor([[5.0, 0.0, 0.0, 5.0]]) / math.sqrt(50))
    assert torch.allclose(attention(maps, 1.0), torch.tensor([[3.0, 0.0, 0.0, 3.0]]) / math.sqrt(18))
    assert torch.isfinite(attention(torch.zeros(2, 3, 4, 4))).all()


def test_the_loss_is_the_sum_of_weighted_mean_squares():
    generator = torch.Generator().manual_seed(0)
    mine, theirs = ([torch.randn(3, 2, s, s, generator=generator) for s in (4, 2)] for _ in range(2))
    expected = 0.0
    for beta, a, b in zip((5.0, 7.0), mine, theirs, strict=True):
        total = 0.0
        for row in range(3):
            one, two = (x[row].square().sum(0).flatten() for x in (a, b))
            total += float(((one / one.norm() - two / two.norm()) ** 2).sum())
        expected += beta * total / (3 * a.shape[2] ** 2)
    assert float(distillation_loss(mine, theirs, (5.0, 7.0), 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(mine, mine, (5.0, 7.0), 2.0)) == 0


def test_the_groups_of_a_residual_network_are_compared():
    model = WideResNet(depth=16, widen=1, num_classes=10, mean=[0.5] * 3, std=[0.2] * 3)
    names = attention_layers(model, torch.rand(2, 3, 32, 32))
    with captured(model, names) as found, torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    assert [tuple(found[name].shape[1:]) for name in names] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert model.training  # as it was
    assert not any(part._forward_hooks for part in model.modules())


def test_a_model_without_maps_is_refused():
    with pytest.raises(UserError, match="expected a convolutional model"):
        attention_layers(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), torch.rand(1, 1, 4, 4))


def chain(tmp_path, *, betas=(50, 50, 50), lr=0.02):
    """Teacher and student on digits; the teacher starts from the victim."""
    everything = digits(240)
    state = replace(everything, model=tiny_cnn(), reserved=everything.train.take(torch.arange(80)))
    common = {"model": "current", "rows": "reserved", "batch_size": 16}
    teacher = Fit(module=partial(Classifier, lr=0.05), epochs=4, into="teacher", **common)
    module = partial(AttentionDistillation, betas=betas, lr=lr)
    distil = Fit(module=module, epochs=6, requires=["teacher"], **common)
    taught = teacher.run(state, small_context(), name="teacher", work=tmp_path / "teacher").state
    return state, taught, distil.run(taught, small_context(), name="distil", work=tmp_path / "distil").state


def gap(state, taught, model) -> float:
    images = state.reserved.images.float() / 255
    guide = tiny_cnn()
    guide.load_state_dict(taught.findings["teacher"])
    names = attention_layers(guide, images[:1])
    found = []
    for net in (guide, model.eval()):
        with captured(net, names) as maps, torch.no_grad():
            net(images)
        found.append([maps[name] for name in names])
    return float(distillation_loss(found[0], found[1], [1.0] * len(names), 2.0))


def test_the_teacher_leaves_the_victim_alone_and_the_student_comes_to_look_where_it_looks(tmp_path):
    state, taught, distilled = chain(tmp_path)
    assert taught.model is state.model
    assert not same(taught.findings["teacher"], state.model.state_dict())
    assert not same(distilled.model.state_dict(), state.model.state_dict())
    assert gap(state, taught, distilled.model) < 0.5 * gap(state, taught, state.model)
    again = chain(tmp_path / "again")[2]
    assert same(distilled.model.state_dict(), again.model.state_dict())


def test_wrong_settings_are_refused():
    state = replace(digits(20), findings={"teacher": tiny_cnn().state_dict()})
    for wrong, message in (({"betas": []}, "betas="), ({"betas": [-1]}, "betas="), ({"power": 0}, "power=0")):
        with pytest.raises(UserError, match=message):
            AttentionDistillation(model=tiny_cnn(), state=state, lr=0.1, **wrong)
    assert "teacher" in Fit(module=partial(AttentionDistillation, lr=0.1), epochs=1, requires=["teacher"]).requires
