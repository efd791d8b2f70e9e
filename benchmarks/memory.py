"""How much memory does a run take, and does it copy the pixels?

python benchmarks/memory.py --data-root cifar10/ [--side 64] [--count 100000] [--trainer debug]

1. `python -m backdoor attack=badnets defense=none` on CIFAR-10's size in a process of its own: its peak RSS.
   `--trainer auto` adds a whole epoch (slow on a CPU); `debug` takes four batches.
2. Tiny ImageNet's size (1.2 GB of pixels) from a file of random images through the cache: the private memory that
   loading, poisoning 10 % and one epoch of batches add. The pixels stay in the memory map, whose pages the kernel
   can drop; poisoned pages are the only private copies. A second copy of the pixels would show as 100 %.
   Linux only: it reads /proc/self/smaps_rollup.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import add_data_root, arguments, verdict

from backdoor.attacks.poison_only import stamp
from backdoor.data.imageset import ImageSet
from backdoor.data.loader import ResidentLoader
from backdoor.triggers import Patch

RUN_GB, PRIVATE_SHARE = 3.0, 0.5
POISONED = 0.1
STORED_AS = "images.npy"  # see backdoor.data.imageset.ImageSet


def run_peak(root: str, trainer: str, cache: Path) -> float:
    """GB of peak resident memory of one run, decoding included."""
    command = [
        *(
            sys.executable,
            "-m",
            "backdoor",
            "data=folder",
            f"data.root={root}",
            "attack=badnets",
            "defense=none",
        ),
        *(f"trainer={trainer}", "trainer.max_epochs=1" if trainer != "debug" else "seed=0", "progress=false"),
        f"hydra.run.dir={cache / 'run'}",
    ]
    environment = {**os.environ, "BACKDOOR_CACHE": str(cache)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def private_gb() -> float:
    """GB of this process's private memory that has been written to (Private_Dirty)."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/self/smaps_rollup: no line Private_Dirty")


def write_images(folder: Path, count: int, side: int) -> ImageSet:
    """Random pixels, written a piece at a time in the cache's format."""
    pixels = np.lib.format.open_memmap(folder / STORED_AS, mode="w+", dtype=np.uint8, shape=(count, 3, side, side))
    random = np.random.default_rng(0)
    for start in range(0, count, 5000):
        part = pixels[start : start + 5000]
        part[:] = random.integers(0, 256, part.shape, dtype=np.uint8)
    pixels.flush()
    return ImageSet("random", count, (3, side, side), torch.zeros(count, dtype=torch.int64), folder)


def private_growth(count: int, side: int) -> tuple[float, float]:
    """(GB of pixels, GB of private memory that opening, poisoning and one epoch of batches leave)."""
    with TemporaryDirectory() as folder:
        images = write_images(Path(folder), count, side)
        before = private_gb()
        split = images.open()
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: int(POISONED * count)]
        stamp(split.images, rows, Patch())
        worst = private_gb()
        loader = ResidentLoader(split, batch_size=128, device=torch.device("cpu"))
        for number, _ in enumerate(loader):
            if number % 100 == 0:
                worst = max(worst, private_gb())
        return split.images.numel() / 2**30, worst - before


def main() -> None:
    parser = arguments(__doc__)
    add_data_root(parser)
    parser.add_argument("--trainer", default="debug", help="of the run; debug is short")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        peak = run_peak(str(Path(args.data_root).resolve()), args.trainer, Path(folder))
    print(f"peak of a CIFAR-10-size run (trainer={args.trainer}): {peak:.2f} GB", end=" ")
    print(f"(target {RUN_GB:.0f} GB: {verdict(peak, RUN_GB, at_least=False)})")
    pixels, private = private_growth(args.count, args.side)
    share = private / pixels
    print(f"{args.count:,} images of 3x{args.side}x{args.side}: {pixels:.2f} GB of pixels")
    print(f"  private memory added: {private:.2f} GB, {share:.0%} of the pixels", end=" ")
    print(f"(below {PRIVATE_SHARE:.0%}: {verdict(share, PRIVATE_SHARE, at_least=False)})")


if __name__ == "__main__":
    main()
