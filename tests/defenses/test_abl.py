"""ABL's formulas against slow versions and hand-computed values, and its modules on small real models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backdoor.data.loader import Batch
from backdoor.defenses.abl import GradientAscent, JointAscent, LossGapIsolation, lowest_rows, signed_floor
from backdoor.defenses.abl.module import masked_mean
from backdoor.errors import UserError
from backdoor.state import Split, State


@pytest.mark.parametrize(
    ("form", "reduction", "value"),
    [
        ("lga", "batch", -0.4),  # mean 0.4 < 0.5: minus the mean
        ("flooding", "batch", 0.6),  # |0.4 - 0.5| + 0.5
        ("lga", "sample", (-0.1 + 0.7) / 2),
        ("flooding", "sample", ((0.4 + 0.5) + (0.2 + 0.5)) / 2),
    ],
)
def test_signed_floor_by_hand(form, reduction, value):
    losses = torch.tensor([0.1, 0.7])
    assert signed_floor(losses, level=0.5, form=form, reduction=reduction).item() == pytest.approx(value)


@pytest.mark.parametrize("reduction", ["batch", "sample"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_lga_and_flooding_have_the_same_gradient(reduction, scale):
    torch.manual_seed(0)
    inputs, labels = torch.randn(16, 5), torch.randint(0, 3, (16,))
    gradients = []
    for form in ("lga", "flooding"):
        weight = (torch.linspace(-1, 1, 15).view(3, 5) * scale).requires_grad_()
        losses = F.cross_entropy(inputs @ weight.T, labels, reduction="none")
        signed_floor(losses, level=0.9, form=form, reduction=reduction).backward()
        gradients.append(weight.grad)
    assert torch.equal(*gradients) or torch.allclose(*gradients, atol=1e-7)
    assert gradients[0].abs().max() > 1e-4


def test_signed_floor_turns_round_at_the_level():
    for start, sign in ((0.3, -1.0), (0.8, 1.0)):
        losses = torch.full((4,), start, requires_grad=True)
        signed_floor(losses, level=0.5).backward()
        assert torch.allclose(losses.grad, torch.full((4,), sign / 4))


def test_signed_floor_refuses():
    with pytest.raises(UserError, match="form=lag: did you mean 'lga'"):
        signed_floor(torch.ones(2), level=0.5, form="lag")
    with pytest.raises(UserError, match="reduction=mean"):
        signed_floor(torch.ones(2), level=0.5, reduction="mean")
    for bad in (torch.ones(2, 2), torch.ones(0), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"expected \(B,\)"):
            signed_floor(bad, level=0.5)


def test_lowest_rows_against_a_sort():
    losses = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    mask = lowest_rows(losses, 0.01)
    order = sorted(range(1000), key=lambda row: losses[row].item())
    assert mask.nonzero().flatten().tolist() == sorted(order[:10])
    assert int(lowest_rows(torch.zeros(500), 0.05).sum()) == 25  # ties: still just as many
    assert int(lowest_rows(torch.rand(10), 0.01).sum()) == 1
    for ratio in (0, 1, -0.1, 2):
        with pytest.raises(UserError, match=r"isolation_ratio"):
            lowest_rows(losses, ratio)
    with pytest.raises(ValueError, match="finite"):
        lowest_rows(torch.tensor([1.0, float("nan")]), 0.5)


def test_isolation_averages_its_passes():
    state = State(Split.of(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), 2)
    callback = LossGapIsolation(ratio=0.25, last_epochs=2)
    callback.passes = [torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([3.0, 1.0, 2.0, 3.0])]
    restored = LossGapIsolation(ratio=0.25, last_epochs=2)
    restored.load_state_dict(callback.state_dict())
    found = restored.contribute(state)
    assert found.scores["loss_gap"].tolist() == [-1.5, -1.0, -2.0, -3.0]
    assert found.groups["suspect"].tolist() == [False, True, False, False]


def test_isolation_takes_the_median_where_asked_to():
    state = State(Split.of(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)), 2)
    callback = LossGapIsolation(ratio=0.34, last_epochs=3, combine="median")
    callback.passes = [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([9.0, 1.0, 2.0]), torch.tensor([0.5, 1.5, 3.0])]
    assert callback.contribute(state).scores["loss_gap"].tolist() == [-0.5, -1.0, -2.0]
    with pytest.raises(UserError, match=r"combine=medain: did you mean 'median'"):
        LossGapIsolation(combine="medain")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.norm(images).flatten(1))


def tiny_state(suspect=(0, 3)) -> State:
    images = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(8, dtype=torch.bool)
    mask[list(suspect)] = True
    return State(Split.of(images, torch.arange(8) % 3), 3, groups={"suspect": mask})


def batch_of(state: State) -> Batch:
    return Batch(state.train.images.float() / 255, state.train.labels, torch.arange(8))


def test_joint_loss_by_hand(monkeypatch):
    state = tiny_state()
    module = JointAscent(model=Tiny(), state=state, lr=0.1, weight=0.5)
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)  # there is no Trainer here
    batch = batch_of(state)
    losses = F.cross_entropy(module.model(batch.images), batch.labels, reduction="none")
    kept = [losses[row].item() for row in (1, 2, 4, 5, 6, 7)]
    isolated = [losses[row].item() for row in (0, 3)]
    expected = sum(kept) / 6 - 0.5 * sum(isolated) / 2
    assert module.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)
    assert masked_mean(losses, torch.zeros(8, dtype=torch.bool)).item() == 0.0


def test_joint_ascent_lets_go_of_a_row_at_the_ceiling(monkeypatch):
    state = tiny_state()
    losses = torch.tensor([1.0, 0.5, 0.5, 3.0, 0.5, 0.5, 0.5, 0.5], requires_grad=True)
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **kwargs: losses)
    for ceiling, value, slope in ((2.0, 0.5 - 1.5, [-0.5, 0.0]), (None, 0.5 - 2.0, [-0.5, -0.5])):
        module, losses.grad = JointAscent(model=Tiny(), state=state, lr=0.1, ceiling=ceiling), None
        monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
        loss = module.training_step(batch_of(state), 0)
        loss.backward()
        assert loss.item() == pytest.approx(value)
        assert losses.grad[[0, 3]].tolist() == slope


@pytest.mark.parametrize(
    ("mode", "weights_move", "statistics_move"),
    [("train", True, True), ("frozen", True, False), ("stats_only", False, True)],
)
def test_bn_modes(mode, weights_move, statistics_move, tmp_path):
    from helpers.contexts import small_context  # the real trainer

    torch.manual_seed(0)
    state, model = tiny_state(), Tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = GradientAscent(model=model, state=state, lr=0.1, bn_mode=mode)
    small_context().fit(module, state.train, name="unlearn", work=tmp_path, epochs=2, batch_size=4)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert ({"head.weight", "norm.weight"} <= moved) == weights_move
    assert ("norm.running_mean" in moved) == statistics_move
    if not weights_move:
        assert not moved & {"head.weight", "head.bias", "norm.weight", "norm.bias"}


def test_ascent_raises_the_loss(tmp_path):
    from helpers.contexts import small_context

    torch.manual_seed(0)
    state, model = tiny_state(), Tiny()
    batch = batch_of(state)

    def loss() -> float:
        return F.cross_entropy(model.eval()(batch.images), batch.labels).item()

    before = loss()
    module = GradientAscent(model=model, state=state, lr=0.1)
    rows = small_context().fit(module, state.train, name="unlearn", work=tmp_path, epochs=9, steps=5, batch_size=4)
    assert loss() > before + 0.05
    assert len(rows) == 3  # 2 steps an epoch, stopped after the fifth


def test_bad_mode():
    with pytest.raises(UserError, match="bn_mode=eval"):
        GradientAscent(model=Tiny(), state=tiny_state(), lr=0.1, bn_mode="eval")
