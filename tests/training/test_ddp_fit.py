"""Two processes train what one trains: the same weights on both, and, without BatchNorm, those of one process."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from backdoor.attacks.inputaware import InputAwareTraining
from backdoor.attacks.inputaware.networks import Generator
from backdoor.attacks.label_maps import AllToOne
from backdoor.attacks.plan import PoisonGroup
from backdoor.defenses.abl import JointAscent, LocalGradientAscent
from backdoor.defenses.dbd import MixMatch
from backdoor.defenses.dst import MixedHead, SemiContrastive
from backdoor.defenses.fct import CentreSpreading
from backdoor.experiment.process import quiet
from backdoor.models.base import ImageClassifier
from backdoor.models.small_cnn import small_cnn
from backdoor.state import Split, State
from backdoor.training import Classifier, StageModule
from backdoor.training.context import Hardware, RunContext

ROWS, CLASSES = 48, 4
PLAIN = {"scale": 1.0, "flip": 0.0, "jitter": 0.0, "grey": 0.0}  # views that draw nothing


def linear() -> ImageClassifier:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8))
    return ImageClassifier(backbone, 8, num_classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3)


def with_norms() -> ImageClassifier:
    return small_cnn(num_classes=CLASSES, image_size=8, width=2, mean=[0.5] * 3, std=[0.25] * 3)


# name -> (model, module). Their losses are no means over rows, but for the first one's.
CASES: dict[str, tuple[Callable[[], ImageClassifier], Callable[..., StageModule]]] = {
    "classifier": (linear, partial(Classifier, lr=0.05)),
    # Near its floor, where the halves of a batch lie on either side of it.
    "floored": (linear, partial(LocalGradientAscent, lr=0.05, level=1.0)),
    "joint": (linear, partial(JointAscent, lr=0.05)),
    "head": (linear, partial(MixedHead, lr=0.05, weight=0.5, views=PLAIN)),
    "contrast": (linear, partial(SemiContrastive, lr=0.05, views=PLAIN)),
    "spread": (linear, partial(CentreSpreading, lr=0.05)),
    "norms": (with_norms, partial(Classifier, lr=0.05)),
    "mixmatch": (with_norms, partial(MixMatch, lr=0.05, rows=6, steps=3, augment="none")),
    "inputaware": (
        with_norms,
        partial(InputAwareTraining, lr=0.05, width=2, poison=PoisonGroup(0.3, AllToOne(target=0))),
    ),
}
# What the others draw, or BatchNorm's statistics on a CPU, is each process's own.
ALIKE = [name for name in CASES if name not in ("norms", "mixmatch", "inputaware")]


def state_of() -> State:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (ROWS, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    suspect = torch.rand(ROWS, generator=generator) < 0.3
    split = Split.of(images, labels)
    masks = Generator.fresh(split, out=1, width=2, seed=0).state_dict()
    groups = {"suspect": suspect, "trusted": ~suspect}
    return State(split, CLASSES, groups=groups, findings={"mask_net": masks})


def trained(name: str, work: Path) -> dict[str, torch.Tensor]:
    model, module = CASES[name]
    hardware = Hardware.of(device="cpu", precision="fp32", channels_last=False, compile=False)
    context = RunContext(0, hardware, model, checkpoint_s=0.0, progress=False)  # a resume point an epoch
    state = state_of()
    trains = module(model=context.make_model(), state=state)
    before = copy.deepcopy(trains.state_dict())
    work.mkdir(parents=True, exist_ok=True)
    with quiet():
        context.fit(trains, state.train, name=name, work=work, epochs=3, batch_size=16)
    after = dict(trains.state_dict())
    assert any(not torch.allclose(value, before[key]) for key, value in after.items() if value.is_floating_point())
    return after


def worker(rank: int, port: int, folder: str) -> None:
    """One of two ranks, in the environment that torchrun gives."""
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in found.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
    os.environ.update(TORCH_CPP_LOG_LEVEL="ERROR")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        weights = {name: trained(name, Path(folder) / "work" / name) for name in CASES}
        torch.save(weights, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(worker, args=(port, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_both_ranks_end_with_the_same_weights(ranks, name):
    first, second = (found[name] for found in ranks)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_train_what_one_trains(ranks, tmp_path, name):
    alone = trained(name, tmp_path)
    for key, value in ranks[0][name].items():
        assert torch.allclose(value, alone[key], atol=1e-5), key
