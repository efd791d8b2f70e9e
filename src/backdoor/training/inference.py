"""One batched, sharded pass over a split: evaluation and every score go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.data.loader import Batch, to_float
from backdoor.state import Split
from backdoor.store.ranks import rank, world

# Measured with WRN-16-1 on a 2-core CPU (see `keep_freed_memory`): 64 is a few percent faster than 32 and 128;
# a GPU wants large batches.
CPU_BATCH, GPU_BATCH = 64, 2048

BatchFunction = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no gradients inside; every submodule gets its own mode back after."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for part, mode in modes:
            part.training = mode


def map_split(
    model: nn.Module,
    split: Split,
    function: BatchFunction,
    *,
    batch_size: int | None = None,
    precision: str = "fp32",
    channels_last: bool = True,
    tick: Callable[[int], None] | None = None,
) -> Tensor:
    """`function(model(images), labels)` for every row, in the split's order.

    In a distributed job each rank computes every world-size-th row and all ranks get the whole result; a row is
    computed once, however the count divides.

    Args:
        model: float [0, 1] images -> logits (B, K); run in eval mode on its own device.
        function: (logits float32 (B, K), labels int64 (B,)) -> (B,) or (B, ...).
        precision: `fp32`, or `bf16` for autocast. Rankings want fp32: bf16 rounds small losses into ties.
        tick: called with the number of rows done.

    Returns:
        (N, ...) on the CPU.
    """
    device = next(model.parameters()).device
    cast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def values(rows: Tensor) -> Tensor:
        images = to_float(split.images[rows.to(split.images.device)].to(device), channels_last=channels_last)
        found = function(model(images).float(), split.labels[rows].to(device))
        if tick is not None:
            tick(len(rows))
        return found

    with evaluating(model), cast:
        return map_rows(values, len(split), batch_size=batch_size or batch_for(device))


def batch_for(device: torch.device) -> int:
    """How many rows a forward pass without gradients takes at once."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def map_rows(function: Callable[[Tensor], Tensor], total: int, *, batch_size: int) -> Tensor:
    """`function(rows int64 (b,)) -> (b, ...)` of all rows 0..total-1, on every rank: (total, ...) on the CPU.

    The one way to score rows: each rank computes every world-size-th row, and each row is computed once.
    """
    rows = torch.arange(rank(), total, world())
    return gather_rows(((part, function(part)) for part in rows.split(batch_size) if len(part)), total)


def map_batches(function: Callable[[Batch], Tensor], batches: Iterable[Batch], total: int) -> Tensor:
    """`function(batch) -> (b, ...)` of batches that hold each of the rows 0..total-1 once: (total, ...) on the CPU.

    For rows that are augmented: every rank draws for the whole batch, as one process would, and computes the values of
    every world-size-th row of it.
    """
    shares = (Batch(*(part[rank() :: world()] for part in batch)) for batch in batches)
    return gather_rows(((share.rows.cpu(), function(share)) for share in shares if len(share.rows)), total)


def gather_rows(parts: Iterable[tuple[Tensor, Tensor]], total: int) -> Tensor:
    """Values (b, ...) that the ranks have computed at `rows` int64 (b,), together each row once: (total, ...)."""
    own = list(parts)
    every = [tuple(torch.cat(part).cpu() for part in zip(*own, strict=True))]  # of no row: an empty tuple
    if world() > 1:
        every *= world()
        dist.all_gather_object(every, every[0])
    filled = [one for one in every if one]
    if not filled:
        return torch.empty(0)
    result = filled[0][1].new_zeros((total, *filled[0][1].shape[1:]))
    for rows, values in filled:
        result[rows] = values
    return result


def predict(
    model: nn.Module,
    split: Split,
    *,
    precision: str = "fp32",
    channels_last: bool = True,
    batch_size: int | None = None,
) -> Tensor:
    """int64 (N,): the predicted class of every row."""
    return map_split(
        model,
        split,
        lambda logits, labels: logits.argmax(1),
        batch_size=batch_size,
        precision=precision,
        channels_last=channels_last,
    ).long()


def sample_losses(model: nn.Module, split: Split, *, channels_last: bool = True) -> Tensor:
    """float32 (N,): cross-entropy of every row, in eval mode and fp32."""
    return map_split(
        model,
        split,
        lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
        channels_last=channels_last,
    )


def reestimate_batchnorm(model: nn.Module, split: Split, *, batch_size: int = 256, channels_last: bool = True) -> None:
    """Replace BatchNorm's running statistics by their mean over one pass in train mode ("precise BN").

    The running averages lag behind while steps are large (Wu and Johnson, "Rethinking Batch in BatchNorm", 2021).
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        for chunk in torch.arange(len(split)).split(batch_size):
            images = split.images[chunk.to(split.images.device)].to(device)
            model(to_float(images, channels_last=channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
