"""How much faster is Neural Cleanse over all classes at once than over one class after the other?

python benchmarks/neural_cleanse.py [--classes 43] [--images 32] [--epochs 3] [--width 16] [--device cpu]

Both sides are `backdoor.defenses.nc.reverse_triggers` with the same settings, the same batches and the same number of
steps for each class; nobody stops early. Together: all classes in one problem. Serial: one call a class, what reference
codes do. They must find the same norms. Random images, an untrained small_cnn in fp32 (no data needed).
What a batch can save is the cost of launching work, not the work: little on a CPU, more the smaller a step is.
"""

from __future__ import annotations

import torch
from common import MEAN, STD, arguments, take_turns, use_threads, verdict
from torch import Tensor

from backdoor.attacks.surrogate import fixed
from backdoor.defenses.nc import Search, reverse_triggers
from backdoor.models import small_cnn

TARGET = 3.0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--classes", type=int, default=43, help="K; GTSRB's by default")
    parser.add_argument("--images", type=int, default=32, help="trusted images, one batch a pass")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=16, help="of small_cnn")
    parser.add_argument("--at-once", type=int, default=None, help="stamped images a forward pass; default: the stage's")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    use_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = small_cnn(num_classes=args.classes, mean=MEAN, std=STD, width=args.width).to(device)
    images = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8).to(device)
    search = Search(epochs=args.epochs, batch_size=args.images, at_once=args.at_once)

    def norms(targets: Tensor) -> Tensor:
        return reverse_triggers(model, images, targets, search, seed=0).masks.sum((1, 2, 3)).cpu()

    def together() -> Tensor:
        return norms(torch.arange(args.classes))

    def serial() -> Tensor:
        return torch.cat([norms(torch.tensor([label])) for label in range(args.classes)])

    with fixed(model):
        torch.testing.assert_close(together(), serial(), atol=0.1, rtol=1e-3)
        times = take_turns({"together": together, "serial": serial}, args.turns)
    print(f"{args.classes} classes, {args.images} images, {args.epochs} steps each, small_cnn({args.width}), {device}")
    print(f"  together  {times['together']:8.2f} s")
    print(f"  serial    {times['serial']:8.2f} s")
    ratio = times["serial"] / times["together"]
    print(f"ratio: {ratio:.1f}x (target {TARGET:.0f}x: {verdict(ratio, TARGET)})")


if __name__ == "__main__":
    main()
