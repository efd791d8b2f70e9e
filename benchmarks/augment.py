"""Which crop + flip is fastest? Each candidate's time as a ratio to the project's own, in one run.

python benchmarks/augment.py [--size 32] [--batch 128] [--device cpu] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor.data.augment import Augment, crop_flip, draw_flips, draw_offsets, gather_windows, padding_of


def draw(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column index (B, H), (B, W) into the padded batch, with the flip folded into the columns."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding_of(height) + 1, (2, count, 1), generator=generator)
    columns = torch.arange(width).expand(count, width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, width - 1 - columns, columns) + offsets[1]
    rows = torch.arange(height) + offsets[0]
    padded = F.pad(images, (padding_of(height),) * 4)
    return padded, rows.to(images.device), columns.to(images.device)


def four_index_gather(images: Tensor, generator: torch.Generator) -> Tensor:
    padded, rows, columns = draw(images, generator)
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def rows_then_columns(images: Tensor, generator: torch.Generator) -> Tensor:
    padded, rows, columns = draw(images, generator)
    count, channels, height, width = images.shape
    picked = padded.gather(2, rows[:, None, :, None].expand(count, channels, height, padded.shape[3]))
    return picked.gather(3, columns[:, None, None, :].expand(count, channels, height, width))


def unfolded_windows(images: Tensor, generator: torch.Generator) -> Tensor:
    """What the project does off the CPU."""
    windows = gather_windows(images, draw_offsets(images, generator))
    rows = draw_flips(len(images), generator).to(images.device)
    windows[rows] = windows[rows].flip(3)
    return windows


def kornia_ops(size: int, sequential: bool) -> Augment:
    """kornia takes float only and no generator; the conversion is part of its cost."""
    from kornia.augmentation import AugmentationSequential, RandomCrop, RandomHorizontalFlip

    steps = (RandomCrop((size, size), padding=padding_of(size)), RandomHorizontalFlip())
    pipeline = AugmentationSequential(*steps, data_keys=["input"]) if sequential else torch.nn.Sequential(*steps)
    return lambda images, generator: pipeline(images.float())


def measure(candidates: Mapping[str, Augment], images: Tensor, repeats: int) -> dict[str, float]:
    """Best seconds a batch of each; taken in turns, so that a busy machine is unfair to nobody."""
    generator = torch.Generator().manual_seed(0)
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(repeats):
        for name, augment in candidates.items():
            start = time.perf_counter()
            augment(images, generator)
            if images.is_cuda:
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, 3, args.size, args.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(args.device)
    candidates = {
        "backdoor.data.augment.crop_flip": crop_flip,
        "gather rows, then columns": rows_then_columns,
        "gather with four indices": four_index_gather,
        "gather through unfold": unfolded_windows,
        "kornia, two ops": kornia_ops(args.size, sequential=False),
        "kornia, AugmentationSequential": kornia_ops(args.size, sequential=True),
    }
    seconds = measure(candidates, images, args.repeats)
    ours = seconds["backdoor.data.augment.crop_flip"]
    print(f"crop + flip of {shape} on {args.device}, time as a ratio to ours ({ours * 1e3:.2f} ms a batch)")
    for name, value in seconds.items():
        print(f"{value / ours:6.2f}x  {name}")


if __name__ == "__main__":
    main()
