"""What attacks share that follow the gradient of a surrogate: a model with fixed weights, in the run's precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from backdoor.data.loader import mix
from backdoor.state import Split
from backdoor.training.context import Hardware, RunContext
from backdoor.training.inference import evaluating

Forward = Callable[[Tensor], Tensor]


@contextmanager
def fixed(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no gradients for the weights inside: what is differentiated are the images alone."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluating(model), torch.enable_grad():
            yield model
    finally:
        for parameter, was in wanted:
            parameter.requires_grad_(was)


def in_precision(function: Forward, hardware: Hardware) -> Forward:
    """`function` under the run's autocast, its result as float32; what surrounds it stays float32."""

    def run(images: Tensor) -> Tensor:
        with torch.autocast(hardware.device.type, dtype=torch.bfloat16, enabled=hardware.precision == "bf16"):
            return function(images).float()

    return run


def capped(steps: int, context: RunContext) -> int:
    """`steps`, or fewer under the cap of `trainer=debug`."""
    return steps if context.max_batches is None else min(steps, context.max_batches)


def sample(split: Split, count: int, seed: int, *, without: int | None = None) -> Split:
    """At most `count` rows of `split`, drawn without replacement, as a copy.

    Args:
        without: a class that is left out; if no other is there, all rows are drawn from.
    """
    rows = torch.arange(len(split))
    if without is not None and bool(split.labels.ne(without).any()):
        rows = split.labels.ne(without).nonzero().flatten()
    generator = torch.Generator().manual_seed(mix(seed, 0x5A))
    return split.take(rows[torch.randperm(len(rows), generator=generator)[:count]])
