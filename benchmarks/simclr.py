"""What do two augmented views cost in a step of contrastive training?

python benchmarks/simclr.py [--batch 512] [--device cpu]

The whole step: `backdoor.defenses.dbd.Contrast` makes two views of each image, then features, NT-Xent, backward and
SGD. The bare step: the same on views that were made once. bf16 where the hardware has it, random images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import MEAN, STD, arguments, take_turns, use_threads, verdict
from torch import Tensor, nn

from backdoor.data.loader import Batch
from backdoor.defenses.dbd import Contrast
from backdoor.models import WideResNet
from backdoor.state import Split, State
from backdoor.training.context import has_bf16

TARGET = 0.85
VIEWS = {"scale": 0.2, "flip": 0.5, "jitter": 0.4, "grey": 0.2, "blur": 0.5}


class Made(nn.Module):
    """Views that exist already."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, images: Tensor) -> Tensor:
        return self.images


def stepper(module: Contrast, batch: Batch, device: torch.device) -> Callable[[], None]:
    """A function that makes one optimiser step."""
    optimizer = torch.optim.SGD(list(module.trained()), lr=0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16(device)):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float(loss.detach())

    return step


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3, help="a turn")
    args = parser.parse_args()
    use_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    images = torch.rand(args.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    rows = torch.arange(args.batch)
    batch = Batch(images, torch.zeros_like(rows).to(device), rows.to(device))
    state = State(Split.of(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)), 10)

    def module() -> Contrast:
        model = WideResNet(depth=16, widen=1, num_classes=10, mean=MEAN, std=STD).to(device).train()
        made = Contrast(model=model.to(memory_format=torch.channels_last), state=state, lr=0.1, views=VIEWS)  # type: ignore[call-overload]
        made.log_dict = lambda *words, **named: None  # type: ignore[method-assign]  # no trainer here
        return made

    whole, bare = module(), module()
    bare.views = Made(whole.views(torch.cat([images, images])))  # type: ignore[assignment]
    steps = {name: stepper(one, batch, device) for name, one in (("whole", whole), ("bare", bare))}
    for step in steps.values():
        step()
    times = take_turns(
        {name: lambda step=step: [step() for _ in range(args.steps)] for name, step in steps.items()}, args.turns
    )
    print(f"{args.batch} images, two views each, WRN-16-1, {device}, seconds for {args.steps} steps")
    print(f"  bare  {times['bare']:8.2f} s")
    print(f"  whole {times['whole']:8.2f} s")
    share = times["bare"] / times["whole"]
    met = f"(target {100 * TARGET:.0f} %: {verdict(share, TARGET)})"
    print(f"speed of the whole step: {100 * share:.1f} % of the bare one {met}")


if __name__ == "__main__":
    main()
