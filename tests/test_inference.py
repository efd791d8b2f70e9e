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

from backdoor.defenses.abl import lowest_rows
from backdoor.inference import evaluating, map_split, predict, reestimate_batchnorm, sample_losses
from backdoor.state import Split

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
        torch.save({**found, "done": torch.tensor(sum(seen))}, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_give_the_result_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(worker, args=(port, str(tmp_path)), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
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
