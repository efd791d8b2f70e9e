"""How much faster is FCT, D-BR's and D-ST's score, than with one image at a time through PIL?

python benchmarks/consistency.py --data-root cifar10/ [--count 50000] [--items 500] [--turns 3]

Ours: `backdoor.defenses.fct.FeatureConsistency` with one draw a row. The loop: a Dataset whose items go through PIL,
once plain and once rotated and shifted by torchvision's transforms, a DataLoader of batch size 1 without workers, two
forwards and one `item()` an image, as the reference code does it; timed on --items images and scaled.
The same untrained WRN-16-1 on both sides: the loop's in fp32, ours in what `trainer=auto` picks (bf16 where there is
hardware for it; --precision fp32 for the same on both).
"""

from __future__ import annotations

import torch
from common import cache_folder, cifar, loop_arguments, take_turns, twins, use_threads, verdict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomAffine, RandomRotation, ToTensor

from backdoor.defenses.fct import FeatureConsistency
from backdoor.models import WideResNet
from backdoor.state import Split
from backdoor.training.context import Hardware, RunContext

TARGET = 10.0


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """An image, plain and moved, array -> PIL -> tensor."""

    def __init__(self, split: Split, count: int) -> None:
        self.images = split.images[:count].permute(0, 2, 3, 1).contiguous().numpy()
        self.plain = ToTensor()
        self.moved = Compose([RandomRotation(180), RandomAffine(0, translate=(0.2, 0.2)), ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(self.images[row])
        return self.plain(image), self.moved(image)


@torch.no_grad()
def one_by_one(model: WideResNet, pairs: Pairs, device: torch.device) -> list[float]:
    """The reference code's loop."""
    model.eval()
    changes = []
    for plain, moved in DataLoader(pairs, batch_size=1, shuffle=False):
        difference = model.features(plain.to(device)) - model.features(moved.to(device))
        changes.append(difference.square().mean().item())
    return changes


def main() -> None:
    parser = loop_arguments(__doc__, items=500)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of our pass")
    args = parser.parse_args()
    use_threads(args.threads)
    device = torch.device(args.device)
    plain, model = twins(device)
    hardware = Hardware.of(device=args.device, precision=args.precision, channels_last=True, compile=False)
    context = RunContext(0, hardware, lambda: model)
    stage = FeatureConsistency(weights="unused", draws=1)
    with cache_folder(args.cache) as cache:
        train = cifar(args.data_root, cache).train.open().take(torch.arange(args.count))
        pairs, draws = Pairs(train, args.items), torch.rand(len(train), 1, 3)
        times = take_turns(
            {
                "ours": lambda: stage.score(model, train, draws, context),
                "loop": lambda: one_by_one(plain, pairs, device),
            },
            args.turns,
        )
    loop = times["loop"] * len(train) / len(pairs)
    print(f"FCT of {len(train):,} images, one draw each, WRN-16-1, {hardware.precision}, {device}")
    print(f"  in batches                        {times['ours']:8.2f} s")
    print(f"  DataLoader of batch size 1, fp32  {loop:8.2f} s (scaled from {len(pairs):,} images)")
    print(f"ratio: {loop / times['ours']:.1f}x (target {TARGET:.0f}x: {verdict(loop / times['ours'], TARGET)})")


if __name__ == "__main__":
    main()
