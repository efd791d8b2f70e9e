"""How much faster is poisoning whole arrays than one image after the other through PIL?

python benchmarks/poisoning.py [--count 50000] [--items 2500] [--turns 5]

Ours: `backdoor.attacks.poison_only.stamp` on `--count` random 3x32x32 images, all rows, in place.
The loops take one image at a time; they are timed on `--items` images and scaled:
  numpy  array -> PIL -> array -> trigger in numpy -> PIL -> array, as the reference codes of ABL and D-BR do it;
  file   PNG bytes -> PIL -> trigger in numpy -> PNG bytes, as BackdoorBench does it with files (no disk here);
  pil    the least that a loop through PIL can do: array -> PIL, paste or blend in C, -> array.
The target is for `numpy`; the other two show how the ratio depends on what one compares with.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from common import arguments, take_turns, use_threads, verdict
from numpy.typing import NDArray
from PIL import Image

from backdoor.attacks.poison_only import stamp
from backdoor.triggers import BlendNoise, Patch, Trigger
from backdoor.triggers.patch import GRID

TARGET = 20.0
ALPHA = 0.2
Pixels = NDArray[np.uint8]
Paint = Callable[[Pixels], Pixels]


def loops(
    images: Pixels, paint: Paint, in_pil: Callable[[Image.Image], Image.Image]
) -> dict[str, Callable[[], object]]:
    """The three loops over images (N, H, W, 3)."""
    out = np.empty_like(images)
    files = [png(Image.fromarray(image)) for image in images]

    def numpy_loop() -> None:
        for row, image in enumerate(images):
            pixels = paint(np.array(Image.fromarray(image)))
            out[row] = np.asarray(Image.fromarray(pixels))

    def file_loop() -> list[bytes]:
        return [png(Image.fromarray(paint(np.array(Image.open(io.BytesIO(file)))))) for file in files]

    def pil_loop() -> None:
        for row, image in enumerate(images):
            out[row] = np.asarray(in_pil(Image.fromarray(image)))

    return {"numpy": numpy_loop, "file": file_loop, "pil": pil_loop}


def png(image: Image.Image) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def patch_loops(images: Pixels) -> dict[str, Callable[[], object]]:
    """The BadNets grid, a slice of the array or a paste."""
    grid = np.repeat(np.array(GRID, np.uint8)[..., None], 3, axis=2)
    small = Image.fromarray(grid)
    height, width = images.shape[1] - len(grid), images.shape[2] - len(grid)

    def paint(pixels: Pixels) -> Pixels:
        pixels[height:, width:] = grid
        return pixels

    def in_pil(image: Image.Image) -> Image.Image:
        image.paste(small, (width, height))
        return image

    return loops(images, paint, in_pil)


def blend_loops(images: Pixels, trigger: BlendNoise) -> dict[str, Callable[[], object]]:
    """Blending in floating point, as the reference codes do, or by `Image.blend`."""
    pattern = trigger.pattern((3, *images.shape[1:3]))[0].permute(1, 2, 0).numpy()
    picture, weighted = Image.fromarray(pattern.astype(np.uint8)), ALPHA * pattern.astype(np.float64)

    def paint(pixels: Pixels) -> Pixels:
        return ((1 - ALPHA) * pixels + weighted).clip(0, 255).astype(np.uint8)

    return loops(images, paint, lambda image: Image.blend(image, picture, ALPHA))


def compare(
    name: str,
    images: torch.Tensor,
    trigger: Trigger,
    slow: dict[str, Callable[[], object]],
    scale: float,
    turns: int,
) -> None:
    """Measure in turns and print the ratios."""
    rows = torch.arange(len(images))
    times = take_turns({"ours": lambda: stamp(images, rows, trigger), **slow}, turns)
    ours = times.pop("ours")
    print(f"{name}: ours {ours * 1e3:.0f} ms for {len(images):,} images")
    for loop, taken in times.items():
        ratio = taken * scale / ours
        target = f" (target {TARGET:.0f}x: {verdict(ratio, TARGET)})" if loop == "numpy" else ""
        print(f"  {loop:6s} {taken * scale:7.2f} s  {ratio:6.1f}x{target}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=2_500, help="images of the loops")
    args = parser.parse_args()
    use_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (args.count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    some = images[: args.items].permute(0, 2, 3, 1).contiguous().numpy().copy()
    scale, blend = args.count / len(some), BlendNoise(alpha=ALPHA)
    compare("patch", images, Patch(), patch_loops(some), scale, args.turns)
    compare("blend", images, blend, blend_loops(some, blend), scale, args.turns)


if __name__ == "__main__":
    main()
