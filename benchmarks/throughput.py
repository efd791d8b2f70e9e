"""How much of the bare model's speed is left when the whole stack trains?

python benchmarks/throughput.py --data-root cifar10/ [--batches 60] [--turns 5]

The stack: `RunContext.fit`, as every run of the product trains: Lightning, the Classifier module with its logging
and its schedule, the memory-mapped CIFAR-10 folder, a fresh gather and crop + flip of every batch.
The floor: the same model (WRN-16-1), precision, memory layout, batch size and optimiser on ONE fixed batch in a
bare PyTorch loop, without data, logging, schedule or Lightning.
In both the clock runs from the end of the tenth batch to the end of the last one: starting a fit costs once a
stage, whatever its length. Floor and stack take turns; medians are compared. On a CPU that others use too, look at
the second ratio, of processor time, with --threads 1: waiting does not count there.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from common import MEAN, STD, add_cache, add_data_root, arguments, cache_folder, cifar, use_threads, verdict
from torch import nn
from torch.nn import functional as F

from backdoor.data.loader import to_float
from backdoor.experiment.process import quiet
from backdoor.models import WideResNet
from backdoor.state import Split, State
from backdoor.training import Classifier
from backdoor.training.context import Hardware, RunContext

TARGET = 0.90
WARM_UP = 10
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


class Clock(pl.Callback):
    """Wall and processor seconds from the end of batch `WARM_UP` to the end of the fit's last batch."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.done = device, 0
        self.started = self.last = (0.0, 0.0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *unused: Any) -> None:
        self.tick(last=trainer.is_last_batch)

    def tick(self, *, last: bool) -> None:
        """Count a batch."""
        self.done += 1
        if self.done == WARM_UP or last:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.last = time.perf_counter(), time.process_time()
        if self.done == WARM_UP:
            self.started = self.last

    def speeds(self) -> tuple[float, float]:
        """Batches after the warm-up, each wall second and each processor second."""
        wall, cpu = (last - started for last, started in zip(self.last, self.started, strict=True))
        return (self.done - WARM_UP) / wall, (self.done - WARM_UP) / cpu


def new_model() -> nn.Module:
    """WRN-16-1 for CIFAR-10."""
    return WideResNet(depth=16, widen=1, num_classes=10, mean=MEAN, std=STD)


def floor(context: RunContext, train: Split, batch_size: int, batches: int) -> tuple[float, float]:
    """Speeds of the bare loop on one fixed batch."""
    hardware = context.hardware
    model, device = context.make_model(), hardware.device
    images = to_float(train.images[:batch_size].to(device), channels_last=hardware.channels_last)
    labels = train.labels[:batch_size].to(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    clock = Clock(device)
    model.train()
    for number in range(batches):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=hardware.precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        clock.tick(last=number + 1 == batches)
    return clock.speeds()


def stack(context: RunContext, train: Split, batch_size: int, augment: str) -> tuple[float, float]:
    """Speeds of one epoch through the product."""
    clock = Clock(context.hardware.device)
    module = Classifier(model=context.make_model(), state=State(train, num_classes=10), schedule="cosine", **SGD)
    loader: dict[str, Any] = {"batch_size": batch_size, "augment": augment}
    with TemporaryDirectory() as work:
        context.fit(module, train, name="victim", work=Path(work), epochs=1, callbacks=[clock], **loader)
    return clock.speeds()


def main() -> None:
    parser = arguments(__doc__)
    add_data_root(parser)
    add_cache(parser)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=60, help="of each measurement")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--augment", default="crop_flip")
    args = parser.parse_args()
    if args.batches <= WARM_UP:
        parser.error(f"--batches: expected more than {WARM_UP}")
    use_threads(args.threads)
    hardware = Hardware.of(device=args.device, precision=args.precision, channels_last=True, compile=False)
    context = RunContext(0, hardware, new_model, max_batches=args.batches, progress=False)
    with quiet(), cache_folder(args.cache) as cache:
        train = cifar(args.data_root, cache).train.open()
        turns = [
            (
                floor(context, train, args.batch_size, args.batches),
                stack(context, train, args.batch_size, args.augment),
            )
            for _ in range(args.turns)
        ]
    print(f"WRN-16-1, batch {args.batch_size}, {args.augment}, {hardware.device}, {hardware.precision}")
    for clock, name in enumerate(("wall", "processor")):
        bare, whole = (median(turn[who][clock] for turn in turns) * args.batch_size for who in (0, 1))
        print(f"  images a {name} second: floor {bare:.0f}, stack {whole:.0f}")
        print(f"  stack / floor: {whole / bare:.1%} (target {TARGET:.0%}: {verdict(whole / bare, TARGET)})")


if __name__ == "__main__":
    main()
