"""How much faster is a trigger on whole batches than on one image after the other?

python benchmarks/triggers.py [--count 5000] [--items 500] [--side 32] [--device cpu] [--only grid,warp] [--turns 5]

Both sides do the same arithmetic on the same random images. Ours is the trigger's call on all `--count` of them (which
cuts them into chunks itself); the loop calls it with one image at a time, as the reference codes' loops do, but without
their PIL and files (benchmarks/poisoning.py has those). The loop is timed on `--items` images and scaled.

`warp` has a second row, whose loop is torch's `grid_sample` alone.

The loop's trigger keeps its pattern between calls, which is more than the reference codes do: SIG's there computes
the wave anew for each image. The target is for pure formulas. Two kinds have none: triggers that run a network (their
loop is the bare network on a batch of one; weights are random, which costs the same), and noise drawn for each image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import arguments, seconds, use_threads, verdict
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from backdoor.attacks.inputaware import InputAware
from backdoor.attacks.inputaware.method import pasted, sharpened
from backdoor.attacks.inputaware.networks import Generator
from backdoor.attacks.ssba import Encoder, Steganography
from backdoor.configs.places import conf_dir
from backdoor.experiment.allocator import keep_freed_memory
from backdoor.triggers import Additive, Trigger, Warp
from backdoor.triggers.chunks import one_thread

TARGET = 20.0
DRAWS_EACH = ("blend_noise_per_image",)
SSBA_WIDTHS, SSBA_BITS = (16, 16, 32, 64, 128), 32  # conf/attack/ssba_encoder/small.yaml


@dataclass(frozen=True)
class Candidate:
    """A trigger, and the loop's call for one image: uint8 (1, C, H, W) and its row -> uint8 of that shape."""

    name: str
    trigger: Trigger
    one: Callable[[Tensor, Tensor], Tensor]
    target: bool


def formulas(side: int, folder: Path) -> Iterator[Candidate]:
    """Every YAML of conf/trigger, and the pattern of LF and TrojanNN."""
    picture = folder / "picture.png"
    Image.new("RGB", (40, 40), (200, 60, 30)).save(picture)
    for path in sorted((conf_dir() / "trigger").glob("*.yaml")):
        config = OmegaConf.load(path)
        for key in OmegaConf.missing_keys(config):
            OmegaConf.update(config, key, str(picture))
        trigger = instantiate(config, _convert_="all")
        if not trigger.needs:
            yield Candidate(path.stem, trigger, trigger, path.stem not in DRAWS_EACH)
            if isinstance(trigger, Warp):
                yield Candidate(f"{path.stem} (bare loop)", trigger, with_grid_sample(trigger, side), False)
    pattern = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0)) * 8
    added = Additive().equip({"pattern": pattern})
    yield Candidate("additive (lf, trojannn)", added, added, True)


def with_grid_sample(warp: Warp, side: int) -> Callable[[Tensor, Tensor], Tensor]:
    """`grid_sample` and nothing else for one image: none of a trigger's checks, and quicker for one than our way."""
    grid = warp.grid(side, side)

    def one(image: Tensor, row: Tensor) -> Tensor:
        return to_pixels(F.grid_sample(image.float(), grid, mode="bilinear", align_corners=True))

    return one


def networks(side: int, device: torch.device) -> Iterator[Candidate]:
    """SSBA's encoder and Input-aware's generators, untrained."""
    shape, secret = (3, side, side), torch.ones(SSBA_BITS)
    weights = Encoder(shape, bits=SSBA_BITS, widths=SSBA_WIDTHS).state_dict()
    encoder = Encoder.of(weights).eval().to(device)
    message = secret.to(device)[None]

    def hide(image: Tensor, row: Tensor) -> Tensor:
        levels = image.float()
        return to_pixels(levels + 255 * encoder(levels / 255, message))

    hidden = Steganography().equip({"encoder": weights, "secret": secret}).ready_on(device)
    yield Candidate("ssba", hidden, hide, False)

    middle, spread = torch.full((3,), 0.5), torch.full((3,), 0.25)
    pattern, mask = (Generator(channels=3, out=out, width=32, mean=middle, std=spread) for out in (3, 1))
    found = {"pattern_net": pattern.state_dict(), "mask_net": mask.state_dict()}
    aware = InputAware().equip(found).ready_on(device)
    pattern, mask = pattern.eval().to(device), mask.eval().to(device)

    def paste(image: Tensor, row: Tensor) -> Tensor:
        x = image.float() / 255
        return to_pixels(255 * pasted(x, pattern(x), sharpened(mask(x))))

    yield Candidate("inputaware", aware, paste, False)


def to_pixels(levels: Tensor) -> Tensor:
    """Rounded half up and clipped."""
    return levels.clamp(0, 255).add(0.5).to(torch.uint8)


def batched(candidate: Candidate, images: Tensor) -> None:
    """As a run calls it: arithmetic on one CPU thread, networks on all."""
    rows = torch.arange(len(images))
    if candidate.trigger.network:
        candidate.trigger(images, rows.to(images.device))
        return
    with one_thread():
        candidate.trigger(images, rows)


def looped(candidate: Candidate, images: Tensor) -> None:
    """One image at a time."""
    out, rows = torch.empty_like(images), torch.arange(len(images))
    with one_thread():
        for row in range(len(images)):
            out[row : row + 1] = candidate.one(images[row : row + 1], rows[row : row + 1])


def compare(candidate: Candidate, images: Tensor, items: int, turns: int) -> None:
    """Measure in turns, after one call of each that is not counted, and print images a second and the ratio."""
    few, whole, loop = images[:items], [], []
    batched(candidate, few)
    looped(candidate, few[:2])
    for _ in range(turns):
        whole.append(seconds(lambda: batched(candidate, images), images.device))
        loop.append(seconds(lambda: looped(candidate, few), images.device))
    ours, slow = len(images) / sorted(whole)[turns // 2], len(few) / sorted(loop)[turns // 2]
    target = f"(target {TARGET:.0f}x: {verdict(ours / slow, TARGET)})" if candidate.target else ""
    print(f"{candidate.name:24s} {ours:12,.0f} img/s {slow:10,.0f} img/s {ours / slow:8.1f}x  {target}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--items", type=int, default=500, help="images of the loop")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default=None, help="names, separated by commas")
    args = parser.parse_args()
    use_threads(args.threads)
    keep_freed_memory()  # as a run does
    device, generator = torch.device(args.device), torch.Generator().manual_seed(0)
    size = (args.count, 3, args.side, args.side)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(device)
    chosen = None if args.only is None else set(args.only.split(","))
    print(f"{args.count:,} images of {args.side}x{args.side} on {device}; the loop on {args.items:,}")
    print(f"{'trigger':24s} {'ours':>18s} {'loop':>16s} {'ratio':>9s}")
    with tempfile.TemporaryDirectory() as folder:
        for candidate in (*formulas(args.side, Path(folder)), *networks(args.side, device)):
            if chosen is None or candidate.name.split()[0] in chosen:
                compare(candidate, images, args.items, args.turns)


if __name__ == "__main__":
    main()
