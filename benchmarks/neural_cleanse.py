"""How much faster is Neural Cleanse over all classes at once than over one class after the other?

python benchmarks/neural_cleanse.py [--model small_cnn] [--classes 43] [--images 32] [--epochs 3] [--precision auto]

All sides are `backdoor.defenses.nc.reverse_triggers` with the same settings, the same batches and the same number of
steps for each class; nobody stops early. Together: all classes in one problem, in the precision and memory layout that
`trainer=auto` picks (--precision fp32 for fp32). Serial: one call a class in fp32 and torch's own layout, what
reference codes do. Serial, the run's way: one call a class with the precision and layout of the first side, so that
what is left is the batch. In fp32 they must find the same norms. Random images, an untrained model (no data needed).
What a batch can save is the cost of launching work, not the work: little on a CPU, more the smaller a step is.
"""

from __future__ import annotations

import torch
from common import MEAN, STD, arguments, take_turns, use_threads, verdict
from torch import Tensor

from backdoor.defenses.nc import Search, reverse_triggers
from backdoor.defenses.nc.stage import in_layout
from backdoor.models import ImageClassifier, WideResNet, small_cnn
from backdoor.training.context import Hardware, RunContext
from backdoor.training.gradients import Forward, fixed, in_precision

TARGET = 3.0


def twins(name: str, classes: int, device: torch.device) -> tuple[ImageClassifier, ImageClassifier]:
    """Two models with the same weights: as a loop has it, and channels-last, as a run has it."""

    def build() -> ImageClassifier:
        torch.manual_seed(0)
        if name == "small_cnn":
            return small_cnn(num_classes=classes, mean=MEAN, std=STD, width=16).to(device)
        return WideResNet(depth=16, widen=1, num_classes=classes, mean=MEAN, std=STD).to(device)

    return build(), build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="small_cnn", choices=["small_cnn", "wrn16_1"], help="small_cnn of width 16")
    parser.add_argument("--classes", type=int, default=43, help="K; GTSRB's by default")
    parser.add_argument("--images", type=int, default=32, help="trusted images, one batch a pass")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=None, help="stamped images a forward pass; default: the stage's")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of our side")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    use_threads(args.threads)
    device = torch.device(args.device)
    hardware = Hardware.of(device=args.device, precision=args.precision, channels_last=True, compile=False)
    plain, model = twins(args.model, args.classes, device)
    fast = in_precision(in_layout(model, RunContext(0, hardware, lambda: model)), hardware)
    images = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8).to(device)
    search = Search(epochs=args.epochs, batch_size=args.images, at_once=args.at_once)

    def norms(forward: Forward, targets: Tensor) -> Tensor:
        return reverse_triggers(forward, images, targets, search, seed=0).masks.sum((1, 2, 3)).cpu()

    def together(forward: Forward) -> Tensor:
        return norms(forward, torch.arange(args.classes))

    def serial(forward: Forward) -> Tensor:
        return torch.cat([norms(forward, torch.tensor([label])) for label in range(args.classes)])

    with fixed(plain), fixed(model):
        torch.testing.assert_close(together(plain), serial(plain), atol=0.1, rtol=1e-3)
        sides = {"ours": lambda: together(fast), "serial": lambda: serial(plain), "same": lambda: serial(fast)}
        times = take_turns(sides, args.turns)
    print(f"{args.classes} classes, {args.images} images, {args.epochs} steps each, {args.model}, {device}")
    print(f"  together, {hardware.precision}           {times['ours']:8.2f} s")
    print(f"  serial, fp32             {times['serial']:8.2f} s")
    print(f"  serial, the run's way    {times['same']:8.2f} s ({times['same'] / times['ours']:.1f}x)")
    ratio = times["serial"] / times["ours"]
    print(f"ratio: {ratio:.1f}x (target {TARGET:.0f}x: {verdict(ratio, TARGET)})")


if __name__ == "__main__":
    main()
