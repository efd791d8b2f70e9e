"""Where the masks are cut: clean accuracy on held-out trusted rows at each threshold."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from backdoor.defenses.anp.norms import prune_neurons
from backdoor.state import Split
from backdoor.training.inference import predict

# BackdoorBench tries these; it takes the one with the lowest ASR on the TEST set, which no defender has.
GRID = tuple(round(0.05 * number, 2) for number in range(19))


def accuracy(model: nn.Module, split: Split, *, channels_last: bool = True) -> float:
    """Share of the rows that are classified correctly, in eval mode and fp32."""
    return float(predict(model, split, channels_last=channels_last).eq(split.labels).double().mean())


def sweep(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    held: Split,
    thresholds: Sequence[float],
    *,
    channels_last: bool = True,
) -> tuple[list[int], list[float]]:
    """(neurons pruned, clean accuracy on `held`) at each of the ascending thresholds; the model is not changed.

    Args:
        masks: layer name -> float (C,); neurons with a mask of at most the threshold are pruned.
    """
    candidate, before = copy.deepcopy(model), -1
    counts: list[int] = []
    accuracies: list[float] = []
    for threshold in thresholds:
        pruned = {name: part <= threshold for name, part in masks.items()}
        counts.append(sum(int(part.sum()) for part in pruned.values()))
        if counts[-1] != before:  # thresholds ascend: who is pruned stays pruned
            prune_neurons(candidate, pruned)
            accuracies.append(accuracy(candidate, held, channels_last=channels_last))
            before = counts[-1]
        else:
            accuracies.append(accuracies[-1])
    return counts, accuracies


def largest_accepted(thresholds: Sequence[float], accuracies: Sequence[float], lowest: float) -> float | None:
    """The largest threshold whose accuracy is at least `lowest`; None if there is none."""
    accepted = [cut for cut, value in zip(thresholds, accuracies, strict=True) if value >= lowest - 1e-9]
    return max(accepted, default=None)
