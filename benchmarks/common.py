"""What the benchmarks share: taking turns, so that a busy machine is unfair to nobody, and one data set."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from backdoor.data import DataSet, Folder
from backdoor.experiment.allocator import keep_freed_memory
from backdoor.models import WideResNet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)  # of CIFAR-10


def arguments(text: str | None) -> argparse.ArgumentParser:
    """A parser with what all scripts take."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    parser.add_argument("--turns", type=int, default=5, help="times that each candidate is measured")
    return parser


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """`--data-root`, or the environment variable BENCHMARK_DATA."""
    root = os.environ.get("BENCHMARK_DATA")
    parser.add_argument(
        "--data-root", default=root, required=root is None, help="CIFAR-10 as train/<class>/*.jpg, test/..."
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """`--cache`, where decoded images stay between runs."""
    parser.add_argument("--cache", default=None, help="folder of decoded images; default: a temporary one")


def use_threads(count: int | None) -> None:
    """Set torch's CPU threads, if asked to, and the allocator, as a run does."""
    keep_freed_memory()
    if count is not None:
        torch.set_num_threads(count)


@contextmanager
def cache_folder(cache: str | None) -> Iterator[Path]:
    """The folder that was asked for, or one that vanishes."""
    if cache is not None:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def cifar(root: str, cache: Path) -> DataSet:
    """The images of a CIFAR-10 folder tree, decoded into `cache`."""
    source = Folder(name="cifar10", root=root, mean=MEAN, std=STD, augment="crop_flip")
    return source.load(cache, progress=False)


def loop_arguments(text: str | None, items: int) -> argparse.ArgumentParser:
    """A parser with what scripts take that compare a pass over all images with a loop of batch size 1."""
    parser = arguments(text)
    add_data_root(parser)
    add_cache(parser)
    parser.add_argument("--items", type=int, default=items, help="images of the batch-size-1 loop")
    parser.add_argument("--count", type=int, default=50_000, help="images of the pass")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(turns=3)
    return parser


def twins(device: torch.device) -> tuple[WideResNet, WideResNet]:
    """Two WRN-16-1 with the same weights: as a loop has it, and channels-last, as a run has it."""
    torch.manual_seed(0)
    plain, model = (WideResNet(depth=16, widen=1, num_classes=10, mean=MEAN, std=STD).to(device) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    return plain, model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def take_turns(candidates: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each candidate, measured A B C, A B C, ..."""
    measured: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns):
        for name, work in candidates.items():
            measured[name].append(seconds(work))
    return {name: median(values) for name, values in measured.items()}


def verdict(value: float, target: float, *, at_least: bool = True) -> str:
    """Whether a target is met."""
    met = value >= target if at_least else value <= target
    return "met" if met else "MISSED"
