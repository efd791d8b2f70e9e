"""One batched, sharded pass over a split: evaluation and every score go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.data.loader import to_float
from backdoor.ranks import rank, world
from backdoor.state import Split

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
    size = batch_size or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
    rows = torch.arange(rank(), len(split), world())
    cast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    parts: list[Tensor] = []
    with evaluating(model), cast:
        for chunk in rows.split(size):
            images = to_float(split.images[chunk.to(split.images.device)].to(device), channels_last=channels_last)
            logits = model(images).float()
            parts.append(function(logits, split.labels[chunk].to(device)))
            if tick is not None:
                tick(len(chunk))
    values = torch.cat(parts).cpu() if parts else torch.empty(0)
    return values if world() == 1 else gather_rows(values, rows, len(split))


def gather_rows(values: Tensor, rows: Tensor, total: int) -> Tensor:
    """Put every rank's values (n, ...) at their `rows` int64 (n,) of one tensor (total, ...)."""
    parts: list[tuple[Tensor, Tensor]] = [(rows, values)] * dist.get_world_size()
    dist.all_gather_object(parts, (rows, values))
    result = values.new_zeros((total, *values.shape[1:]))
    for where, part in parts:
        result[where] = part
    return result


def predict(model: nn.Module, split: Split, *, precision: str = "fp32", channels_last: bool = True) -> Tensor:
    """int64 (N,): the predicted class of every row."""
    return map_split(
        model,
        split,
        lambda logits, labels: logits.argmax(1),
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
