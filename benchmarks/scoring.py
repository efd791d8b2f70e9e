"""How much faster is scoring the loss of every image than with a DataLoader of batch size 1?

python benchmarks/scoring.py --data-root cifar10/ [--items 1500] [--turns 3]

Ours: `backdoor.training.inference.sample_losses` over all train images (fp32, eval mode).
The loop: what the reference codes of ABL do to rank their images: a Dataset whose items go through PIL and ToTensor,
a DataLoader of batch size 1 without workers, one forward and one `loss.item()` an image. It is timed on the
first --items images and scaled to all. Both use the same WRN-16-1 in fp32 and must give the same losses.
The floor: the network's convolutions alone, in batches on random activations; nothing in fp32 is faster than that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import cache_folder, cifar, loop_arguments, take_turns, twins, use_threads, verdict
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from backdoor.state import Split
from backdoor.training.inference import CPU_BATCH, sample_losses

TARGET = 8.0


class Items(Dataset[tuple[Tensor, int]]):
    """One image at a time, array -> PIL -> tensor, as torchvision's CIFAR10 does it."""

    def __init__(self, split: Split, count: int) -> None:
        self.images = split.images[:count].permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels[:count].tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def one_by_one(model: nn.Module, items: Items, device: torch.device) -> list[float]:
    """The reference codes' loop."""
    losses = []
    model.eval()
    with torch.no_grad():
        for images, labels in DataLoader(items, batch_size=1, shuffle=False):
            logits = model(images.to(device))
            losses.append(F.cross_entropy(logits, labels.to(device)).item())
    return losses


def convolutions(model: nn.Module, count: int, device: torch.device, batch: int = CPU_BATCH) -> Callable[[], None]:
    """A function that runs the convolutions of `count` images and nothing else."""
    seen: list[tuple[nn.Conv2d, Tensor]] = []

    def keep(part: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        assert isinstance(part, nn.Conv2d)
        seen.append((part, given[0].detach()))

    hooks = [part.register_forward_hook(keep) for part in model.modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        images = torch.rand(batch, 3, 32, 32, device=device)
        model.eval()(images.to(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()

    def run() -> None:
        with torch.no_grad():
            for _ in range(count // batch):
                for part, given in seen:
                    part(given)

    return run


def main() -> None:
    args = loop_arguments(__doc__, items=1500).parse_args()
    use_threads(args.threads)
    device = torch.device(args.device)
    plain, model = twins(device)
    with cache_folder(args.cache) as cache:
        train = cifar(args.data_root, cache).train.open().take(torch.arange(args.count))
        items = Items(train, args.items)
        found = torch.tensor(one_by_one(plain, items, device))
        torch.testing.assert_close(found, sample_losses(model, train)[: args.items], atol=1e-4, rtol=1e-4)
        times = take_turns(
            {
                "ours": lambda: sample_losses(model, train),
                "loop": lambda: one_by_one(plain, items, device),
                "floor": convolutions(model, len(train), device),
            },
            args.turns,
        )
    loop = times["loop"] * len(train) / len(items)
    print(f"cross-entropy of {len(train):,} images, WRN-16-1, fp32, {device}")
    print(f"  sample_losses                  {times['ours']:8.2f} s")
    print(f"  DataLoader of batch size 1     {loop:8.2f} s (scaled from {len(items):,} images)")
    print(f"  convolutions alone, in batches {times['floor']:8.2f} s: no more than {loop / times['floor']:.1f}x here")
    ratio = loop / times["ours"]
    print(f"ratio: {ratio:.1f}x (target {TARGET:.0f}x: {verdict(ratio, TARGET)})")


if __name__ == "__main__":
    main()
