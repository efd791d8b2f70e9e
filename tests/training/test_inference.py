"""The batched pass against a slow loop, its side effects, and two processes against one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from backdoor.defenses.abl import LossGapIsolation, lowest_rows
from backdoor.defenses.dbd import MixMatch
from backdoor.defenses.fct import FeatureConsistency
from backdoor.defenses.features import features_of
from backdoor.models.small_cnn import small_cnn
from backdoor.state import Split, State
from backdoor.training.context import Hardware, RunContext
from backdoor.training.inference import evaluating, map_split, predict, reestimate_batchnorm, sample_losses

ODD = 101


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def images_of(count: int = ODD) -> Split:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Split.of(images, torch.randint(0, 5, (count,), generator=generator))


def one_by_one(model: nn.Module, split: Split) -> torch.Tensor:
    """Logits (N, K), an image at a time."""
    model.eval()
    with torch.no_grad():
        rows = [model(image[None].float() / 255)[0] for image in split.images]
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_map_split_equals_the_loop_in_order(batch_size):
    model, split = network(), images_of()
    expected = one_by_one(model, split)
    found = map_split(model, split, lambda logits, labels: logits, batch_size=batch_size)
    assert torch.allclose(found, expected, atol=1e-5)
    labels = map_split(model, split, lambda logits, labels: labels, batch_size=batch_size)
    assert torch.equal(labels, split.labels)


def test_predictions_and_losses_equal_the_loop():
    model, split = network(), images_of()
    logits = one_by_one(model, split)
    assert torch.equal(predict(model, split), logits.argmax(1))
    by_hand = torch.stack([-row.log_softmax(0)[label] for row, label in zip(logits, split.labels, strict=True)])
    assert torch.allclose(sample_losses(model, split), by_hand, atol=1e-5)


def test_every_row_ticks_and_no_row_is_no_error():
    model, split, done = network(), images_of(), []
    map_split(model, split, lambda logits, labels: labels, batch_size=10, tick=done.append)
    assert (sum(done), len(done)) == (ODD, 11)
    assert len(predict(model, split.take(torch.arange(0)))) == 0


def test_evaluating_gives_each_part_its_own_mode_back():
    model = network()
    model.train()
    model[1].eval()  # a frozen BatchNorm inside a training model
    modes = [part.training for part in model.modules()]
    weight_before = model[1].running_mean.clone()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
        assert not model(torch.rand(2, 3, 8, 8)).requires_grad
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(model[1].running_mean, weight_before)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / 0  # noqa: B018
    assert [part.training for part in model.modules()] == modes


def test_reestimated_batchnorm_is_the_mean_over_batches():
    split = images_of(40)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 64, 5))
    model[0].running_mean.fill_(9.0)  # stale statistics must leave no trace
    model[0].momentum = 0.3
    model.train()
    reestimate_batchnorm(model, split, batch_size=20)
    pixels = split.images.double() / 255
    halves = [half.transpose(0, 1).reshape(3, -1) for half in pixels.split(20)]
    mean = sum(half.mean(1) for half in halves) / 2
    var = sum(half.var(1, unbiased=True) for half in halves) / 2  # running_var is the unbiased one
    assert torch.allclose(model[0].running_mean.double(), mean, atol=1e-5)
    assert torch.allclose(model[0].running_var.double(), var, atol=1e-5)
    assert model[0].momentum == 0.3
    assert model.training
    assert model[0].training


def test_reestimation_leaves_a_model_without_batchnorm_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    before = model[1].weight.clone()
    reestimate_batchnorm(model, images_of(4))
    assert torch.equal(model[1].weight, before)


def classifier() -> nn.Module:
    return small_cnn(num_classes=5, image_size=8, width=2, mean=[0.5] * 3, std=[0.25] * 3)


def every_score() -> dict[str, torch.Tensor]:
    """What defenses rank all rows of a train set by, and how many rows this process has run for it, a forward each."""
    hardware = Hardware.of(device="cpu", precision="fp32", channels_last=True, compile=False)
    context = RunContext(0, hardware, classifier, progress=False)
    model, state = context.make_model(), State(images_of(), 5)
    fct, draws = FeatureConsistency(weights="net"), torch.rand(ODD, 4, 3, generator=torch.Generator().manual_seed(2))
    ways = {
        "fct": lambda: fct.score(model, state.train, draws, context),
        "dbd": lambda: MixMatch(model=model, state=state, lr=0.1, augment="crop_flip").rank(epoch=1),
        "abl": lambda: LossGapIsolation().score(model, state),
        "ac and spectral": lambda: features_of(model, state.train, stage="ac"),
    }
    found, ran = {}, []
    model.backbone.register_forward_pre_hook(lambda part, given: ran.append(len(given[0])))
    for name, way in ways.items():
        ran.clear()
        found[name] = way()
        found[f"{name}: rows"] = torch.tensor(sum(ran))
    return found


def worker(rank: int, port: int, folder: str) -> None:
    """One of two ranks: the same calls as in one process."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        seen: list[int] = []
        model, split = network(), images_of()
        losses = sample_losses(model, split)
        map_split(model, split, lambda logits, labels: labels, tick=seen.append)
        found = {"losses": losses, "classes": predict(model, split), "suspect": lowest_rows(losses, 0.1)}
        found |= {"done": torch.tensor(sum(seen))} | every_score()
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(worker, args=(port, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_give_the_result_of_one(ranks):
    model, split = network(), images_of()
    losses = sample_losses(model, split)
    for found in ranks:
        assert torch.allclose(found["losses"], losses, atol=1e-6)
        assert torch.equal(found["classes"], predict(model, split))
        assert torch.equal(found["suspect"], lowest_rows(losses, 0.1))
    assert torch.equal(ranks[0]["losses"], ranks[1]["losses"])  # all ranks flag the same rows
    assert [int(found["done"]) for found in ranks] == [51, 50]  # the odd row is computed once
    by_hand = F.cross_entropy(one_by_one(model, split), split.labels, reduction="none")
    assert torch.equal(ranks[0]["losses"].argsort(), by_hand.argsort())


def test_two_processes_share_the_rows_of_every_score(ranks):
    """Also where rows are augmented or turned at random: a row's draws are its own, whoever computes it."""
    alone = every_score()
    for name in ("fct", "dbd", "abl", "ac and spectral"):
        passes = 5 if name == "fct" else 1  # the image, and four draws
        assert int(alone[f"{name}: rows"]) == passes * ODD
        rows = [int(found[f"{name}: rows"]) // passes for found in ranks]
        assert sum(rows) == ODD  # no row twice
        assert max(rows) - min(rows) <= 2, name
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.allclose(ranks[0][name], alone[name], atol=1e-6), name
