"""Input-aware: networks, losses, batches and triggers that are each image's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from backdoor.attacks import AllToAll, AllToOne, CleanLabel, PoisonGroup
from backdoor.attacks.inputaware import (
    CrossTrigger,
    InputAware,
    InputAwareTraining,
    LearnMask,
    MaskTraining,
    cross_group,
)
from backdoor.attacks.inputaware.method import density_loss, distance, diversity_loss, pasted, sharpened
from backdoor.attacks.inputaware.networks import Generator, statistics
from backdoor.data.loader import Batch
from backdoor.errors import UserError
from backdoor.state import State
from helpers.contexts import same, small_context
from helpers.observing import hearing
from helpers.surrogate import digits, tiny_cnn

TO_ZERO = AllToOne(target=0)


def network(out: int = 1, channels: int = 3, seed: int = 0, width: int = 4) -> Generator:
    return Generator.fresh(digits(20, channels=channels).train, out=out, width=width, seed=seed)


def with_mask(state: State, width: int = 4) -> State:
    net = Generator.fresh(state.train, out=1, width=width, seed=5)
    return State(state.train, state.num_classes, findings={"mask_net": net.state_dict()})


def training(ratio: float = 0.1, label_map=TO_ZERO, **more) -> InputAwareTraining:
    return InputAwareTraining(
        model=tiny_cnn(),
        state=with_mask(digits(120)),
        poison=PoisonGroup(ratio, label_map),
        width=4,
        **{"lr": 0.05, **more},
    )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 30, 48), (1, 9, 8)])
@pytest.mark.parametrize("out", [1, 3])
def test_networks_answer_in_the_unit_range_at_any_size(shape, out):
    net = network(out, shape[0])
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    made = net(images)
    assert made.shape == (4, out, *shape[1:])
    assert made.dtype == torch.float32
    assert 0 <= made.min() < made.max() <= 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(images), made)
    twin = Generator.of(net.state_dict())
    assert torch.equal(twin(images), net.eval()(images))


def test_the_published_sizes():
    net = Generator(channels=3, out=3, width=32, mean=torch.zeros(3), std=torch.ones(3))
    convolutions = [tuple(part.weight.shape[:2]) for part in net.modules() if isinstance(part, torch.nn.Conv2d)]
    encoder = [(32, 3), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128)]
    decoder = [(128, 128), (64, 128), (64, 64), (32, 64), (32, 32), (3, 32)]
    assert convolutions == [*encoder, (128, 128), *decoder]
    assert {part.momentum for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {0.05}


def test_statistics_are_those_of_all_pixels():
    images = digits(50, channels=3).train.images
    mean, std = statistics(images, chunk=7)
    assert torch.allclose(mean, images.double().div(255).mean((0, 2, 3)).float())
    assert torch.allclose(std, images.double().div(255).std((0, 2, 3), unbiased=False).float())
    assert statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))[1].item() == pytest.approx(1 / 255)


def test_formulas_against_loops():
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.rand(5, 3, 4, 4, generator=generator) for _ in range(4))
    ratios = []
    for row in range(5):
        of_images = math.sqrt(sum(float(v) ** 2 for v in (a[row] - b[row]).flatten()) / 48)
        of_made = math.sqrt(sum(float(v) ** 2 for v in (c[row] - d[row]).flatten()) / 48)
        ratios.append(of_images / (of_made + 1e-7))
    assert float(diversity_loss((a, b), (c, d))) == pytest.approx(sum(ratios) / 5, rel=1e-5)
    mask = a[:, :1]
    expected = sum(max(0.0, float(v) - 0.032) for v in mask.flatten()) / mask.numel()
    assert float(density_loss(mask, 0.032)) == pytest.approx(expected, rel=1e-5)
    assert sharpened(torch.tensor([0.0, 0.5, 0.55, 1.0])).tolist() == pytest.approx([0, 0.5, 0.8808, 1], abs=1e-4)


def test_pasting_is_the_same_picture_in_normalised_space():
    generator = torch.Generator().manual_seed(0)
    images, pattern = (torch.rand(4, 3, 8, 8, generator=generator) for _ in range(2))
    mask = torch.rand(4, 1, 8, 8, generator=generator)
    made = pasted(images, pattern, mask)
    assert made.min() >= 0
    assert made.max() <= 1
    mean, std = torch.tensor([0.2, 0.5, 0.7]).view(3, 1, 1), torch.tensor([0.1, 0.3, 0.2]).view(3, 1, 1)
    in_theirs = pasted((images - mean) / std, (pattern - mean) / std, mask)
    assert torch.allclose(in_theirs, (made - mean) / std, atol=1e-5)
    assert torch.equal(pasted(images, pattern, torch.zeros(4, 1, 8, 8)), images)


def test_agreeing_outputs_have_a_finite_gradient():
    made = torch.ones(2, 1, 4, 4, requires_grad=True)
    loss = diversity_loss((torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)), (made, torch.ones(2, 1, 4, 4)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(made.grad).all()
    assert distance(made, made).max() <= 1.01e-7


@pytest.mark.parametrize(("size", "b"), [(64, 6), (30, 3), (10, 1)])
def test_a_batch_holds_b_poisoned_and_b_cross_rows(size, b):
    module = training(label_map=AllToAll()).eval()
    train = module.state.train
    batch = Batch(train.images[:size] / 255, train.labels[:size], torch.arange(size))
    changed, diverse = module.changed(batch)
    assert torch.equal(changed.labels[:b], (batch.labels[:b] + 1) % 10)
    assert torch.equal(changed.labels[b:], batch.labels[b:])
    assert torch.equal(changed.images[2 * b :], batch.images[2 * b :])
    pattern, mask = module.pattern_net(batch.images), sharpened(module.mask_net(batch.images))
    own = pasted(batch.images[:b], pattern[:b], mask[:b])
    others = pasted(batch.images[b : 2 * b], pattern[size - b :], mask[size - b :])
    assert torch.allclose(changed.images[:b], own, atol=1e-6)
    assert torch.allclose(changed.images[b : 2 * b], others, atol=1e-6)
    assert diverse > 0


def test_without_poisoned_rows_the_batch_is_clean():
    module = training(ratio=0.0)
    train = module.state.train
    batch = Batch(train.images[:9] / 255, train.labels[:9], torch.arange(9))
    changed, diverse = module.changed(batch)
    assert changed is batch
    assert diverse == 0


def test_one_fit_moves_the_pattern_network_and_the_victim_but_not_the_mask(tmp_path):
    module = training(ratio=0.3)
    before = copy.deepcopy(module.state_dict())
    fit(module, tmp_path, epochs=1)
    after = module.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model", "pattern_net"}


def fit(module, work, epochs=3, **context):
    return small_context(**context).fit(
        module, module.state.train, name="victim", work=work, epochs=epochs, batch_size=32
    )


def test_a_killed_victim_goes_on_to_the_same_weights(tmp_path):
    class Killed(Exception):
        pass

    def kill(row):
        if row["epoch"] == 2:
            raise Killed

    whole, killed, resumed = (training(ratio=0.3, schedule="cosine") for _ in range(3))
    rows = fit(whole, tmp_path / "whole")
    with pytest.raises(Killed), hearing(kill):
        fit(killed, tmp_path / "killed", checkpoint_s=0.0)
    assert (tmp_path / "killed" / "resume.ckpt").exists()
    torch.rand(3)
    again = fit(resumed, tmp_path / "killed")
    assert same(whole.state_dict(), resumed.state_dict())
    assert [row["loss"] for row in rows] == [row["loss"] for row in again]
    assert rows[-1]["lr"] == pytest.approx(0.0, abs=1e-6)  # schedules are stepped by hand


def findings() -> dict:
    train = digits(60, channels=3).train
    nets = {"mask_net": network(1).state_dict(), "pattern_net": network(3).state_dict()}
    return {**nets, "donors": train.images[10:40], "donor_rows": torch.arange(10, 40)}


def test_an_image_gets_the_same_trigger_whatever_the_batch():
    train = digits(60, channels=3).train
    for trigger in (InputAware().equip(findings()), CrossTrigger().equip(findings())):
        index = torch.arange(60)
        whole = trigger(train.images, index)
        assert not torch.equal(whole, train.images)
        for size in (1, 7, 33):
            parts = zip(train.images.split(size), index.split(size), strict=True)
            assert torch.equal(torch.cat([trigger(*part) for part in parts]), whole)
        assert (trigger(train.images / 255, index) * 255 - whole.float()).abs().max() <= 0.5 + 1e-3
        assert trigger(train.images[:0], index[:0]).shape == (0, 3, 16, 16)
        written = train.images.clone()
        trigger.write(written, index, index)
        assert torch.equal(written, whole)


def test_a_cross_trigger_is_another_images():
    trigger, own = CrossTrigger().equip(findings()), InputAware().equip(findings())
    rows = trigger.donor_rows.tolist()
    donors = [rows[trigger.donor(row, rows)] for row in range(60)]
    assert all(donor != row for row, donor in enumerate(donors))
    assert len(set(donors)) > 15
    train = digits(60, channels=3).train
    seen = train.images[donors] / 255
    wanted = pasted(train.images / 255, own.pattern_net(seen), sharpened(own.mask_net(seen)))
    assert (trigger(train.images / 255, torch.arange(60)) - wanted).abs().max() < 1e-5


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"at least 8 pixels.*7x20"):
        InputAware().check((3, 7, 20))
    InputAware().check((1, 8, 8))  # grey images are fine, and nothing can be painted yet
    with pytest.raises(UserError, match=r"attack\.ratio=0\.4.*1/3"):
        training(ratio=0.4)
    with pytest.raises(UserError, match="some classes only"):
        cross_group(PoisonGroup(0.1, CleanLabel(target=0)))
    with pytest.raises(UserError, match=r"density=2"):
        MaskTraining(model=network(), state=digits(20), lr=0.1, density=2)
    with pytest.raises(UserError, match=r"attack\.stages\.mask\.epochs=0"):
        LearnMask(module=MaskTraining, epochs=0)
    with pytest.raises(UserError, match="schedule"):
        training(pattern_schedule="cosin")


def test_a_choice_about_gradients_that_is_none_is_refused():
    with pytest.raises(UserError, match="pattern_zero_grad=maybe: expected true or false"):
        training(pattern_zero_grad="maybe")
