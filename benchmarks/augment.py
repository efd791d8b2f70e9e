"""Which crop + flip is fastest? Each candidate's time as a ratio to the project's own, in one run.

python benchmarks/augment.py [--size 32] [--batch 128] [--device cpu]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor.data.augment import crop_flip, padding_of


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


def copy_loop(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (padding_of(height),) * 4)
    offsets = torch.randint(0, 2 * padding_of(height) + 1, (count, 2), generator=generator).tolist()
    flips = (torch.rand(count, generator=generator) < 0.5).tolist()
    out = torch.empty_like(images)
    for number, ((top, left), mirrored) in enumerate(zip(offsets, flips, strict=True)):
        window = padded[number, :, top : top + height, left : left + width]
        out[number] = window.flip(2) if mirrored else window
    return out


def kornia_ops(size: int, sequential: bool) -> Callable[[Tensor, torch.Generator], Tensor]:
    """kornia takes float only and no generator; the conversion is part of its cost."""
    from kornia.augmentation import AugmentationSequential, RandomCrop, RandomHorizontalFlip

    steps = (RandomCrop((size, size), padding=padding_of(size)), RandomHorizontalFlip())
    pipeline = (
        AugmentationSequential(*steps, data_keys=["input"]) if sequential else torch.nn.Sequential(*steps)
    )
    return lambda images, generator: pipeline(images.float())


def measure(augment: Callable[[Tensor, torch.Generator], Tensor], images: Tensor, repeats: int) -> float:
    """Median seconds a batch."""
    generator = torch.Generator().manual_seed(0)
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        augment(images, generator)
        if images.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[3:])[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, 3, args.size, args.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(args.device)
    candidates = {
        "backdoor.data.augment.crop_flip": crop_flip,
        "gather rows, then columns": rows_then_columns,
        "gather with four indices": four_index_gather,
        "copy in a loop": copy_loop,
        "kornia, two ops": kornia_ops(args.size, sequential=False),
        "kornia, AugmentationSequential": kornia_ops(args.size, sequential=True),
    }
    seconds = {name: measure(augment, images, args.repeats) for name, augment in candidates.items()}
    ours = seconds["backdoor.data.augment.crop_flip"]
    print(f"crop + flip of {shape} on {args.device}, time as a ratio to ours ({ours * 1e3:.2f} ms a batch)")
    for name, value in seconds.items():
        print(f"{value / ours:6.2f}x  {name}")


if __name__ == "__main__":
    main()
