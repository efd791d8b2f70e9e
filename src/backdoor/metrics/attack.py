"""C-Acc, ASR, R-Acc, DER and RIR, as BackdoorBench defines them (Wu et al., arXiv:2206.12654 and 2407.19845).

All values are fractions in [0, 1]. A metric that cannot be known is absent from the dict, never 0. What an attack's
success is, its `Goal` says (`backdoor.metrics.goals`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from backdoor.state import Goal

Targets = int | Collection[int] | None


def predicted_classes(logits_or_pred: Tensor) -> Tensor:
    """Class indices from logits or from class indices.

    Args:
        logits_or_pred: float (B, K) scores, or integer (B,) classes.

    Returns:
        int64 (B,).

    Raises:
        ValueError: another shape or dtype, or NaN among the logits (the model has diverged).
    """
    values = logits_or_pred
    if values.ndim == 1 and not values.is_floating_point() and values.dtype != torch.bool:
        return values.long()
    if values.ndim != 2 or values.shape[1] == 0 or not values.is_floating_point():
        raise ValueError(
            "predictions: expected float logits (B, K) or integer classes (B,), "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    if values.isnan().any():
        rows = int(values.isnan().any(dim=1).sum())
        raise ValueError(f"predictions: NaN logits in {rows} of {len(values)} rows: the model has diverged")
    return values.argmax(dim=1)


def clean_counts(pred: Tensor, labels: Tensor, target: Targets) -> Tensor:
    """Hits, rows, hits off the target class, rows off it: int64 (4,); the last two are 0 without a target."""
    labels = _labels("labels", labels, pred)
    hit = pred == labels
    targets = [target] if isinstance(target, int) else sorted(target or ())
    other = ~torch.isin(labels, labels.new_tensor(targets)) if targets else torch.zeros_like(hit)
    return torch.stack([hit.sum(), _rows(hit), (hit & other).sum(), other.sum()])


def attack_counts(pred: Tensor, original: Tensor, goal: Goal) -> Tensor:
    """ASR hits, rows, R-Acc hits: int64 (3,)."""
    original = _labels("original", original, pred)
    hit, right = goal.hit(pred, original), pred == original
    return torch.stack([hit.sum(), _rows(hit), right.sum()])


def clean_accuracy(logits_or_pred: Tensor, labels: Tensor, target: Targets = None) -> dict[str, float]:
    """Accuracy on clean test images.

    Args:
        logits_or_pred: float (N, K) or integer (N,).
        labels: int64 (N,), true labels.
        target: the attack's target class, those of its groups, or None.

    Returns:
        `c_acc`, and `c_acc_non_target` (over the rows of the other classes) if there is a target. The
        second is not raised by a model that answers the target class to everything.

    Raises:
        ValueError: no rows, NaN, or shapes that do not fit.
    """
    return _clean_result(clean_counts(predicted_classes(logits_or_pred), labels, target))


def attack_success(logits_or_pred: Tensor, original: Tensor, goal: Goal) -> dict[str, float]:
    """Attack success rate and robust accuracy on triggered test images.

    Args:
        logits_or_pred: float (N, K) or integer (N,).
        original: int64 (N,), the true labels.
        goal: what the attacker wants of them.

    Returns:
        `asr`, the share on which the goal is reached, and `r_acc`, the share of right answers. An ASR set has no image
        whose right answer is what the attacker wants (of the target class), so `asr + r_acc <= 1`; for an untargeted
        goal it is 1.

    Raises:
        ValueError: no rows, NaN, or shapes that do not fit.
    """
    return _attack_result(attack_counts(predicted_classes(logits_or_pred), original, goal))


def evaluate_predictions(
    clean: Tensor,
    labels: Tensor,
    *,
    attacked: Tensor | None = None,
    original: Tensor | None = None,
    goal: Goal | None = None,
    target: Targets = None,
) -> dict[str, float]:
    """`clean_accuracy` and, if there is an attack set, `attack_success`, in one dict.

    Args:
        clean: predictions on the clean test set, float (N, K) or integer (N,).
        labels: int64 (N,).
        attacked: predictions on the triggered test set, float (M, K) or integer (M,).
        original: int64 (M,), their true labels.
        goal: what the attacker wants of them.
        target: the target class of an all-to-one attack, or those of several.

    Raises:
        ValueError: as the two functions, or some of `attacked`, `original` and `goal` without the others.
    """
    result = clean_accuracy(clean, labels, target)
    if attacked is None and original is None and goal is None:
        return result
    if attacked is None or original is None or goal is None:
        raise ValueError("attacked, original and goal: expected all or none of them")
    return result | attack_success(attacked, original, goal)


def worst_asr(metrics: Mapping[str, float]) -> float | None:
    """The highest ASR of an attack's triggers: `asr` and each `asr/NAME`; None without one."""
    return max((value for name, value in metrics.items() if name.partition("/")[0] == "asr"), default=None)


def defense_effectiveness_rating(c_acc_before: float, asr_before: float, c_acc_after: float, asr_after: float) -> float:
    """DER = [max(0, ASR drop) - max(0, C-Acc drop) + 1] / 2 in [0, 1]; 0.5 means that nothing changed.

    Source: Zhu et al., FT-SAM, arXiv:2304.11823, as used by BackdoorBench v2. Arguments are fractions.

    Raises:
        ValueError: an argument outside [0, 1] (a percentage, or NaN).
    """
    _fractions(c_acc_before=c_acc_before, asr_before=asr_before, c_acc_after=c_acc_after, asr_after=asr_after)
    return (max(0.0, asr_before - asr_after) - max(0.0, c_acc_before - c_acc_after) + 1) / 2


def robust_improvement_rating(
    c_acc_before: float, r_acc_before: float, c_acc_after: float, r_acc_after: float
) -> float:
    """RIR = [max(0, R-Acc gain) - max(0, C-Acc drop) + 1] / 2 in [0, 1]; 0.5 means that nothing changed.

    Source: BackdoorBench v2, arXiv:2407.19845. Arguments are fractions.

    Raises:
        ValueError: an argument outside [0, 1] (a percentage, or NaN).
    """
    _fractions(c_acc_before=c_acc_before, r_acc_before=r_acc_before, c_acc_after=c_acc_after, r_acc_after=r_acc_after)
    return (max(0.0, r_acc_after - r_acc_before) - max(0.0, c_acc_before - c_acc_after) + 1) / 2


class _Counts(Metric):
    """Integer counts that ranks add up: exact, and independent of the batch and shard sizes."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor

    def __init__(self, counts: int) -> None:
        super().__init__()
        self.add_state("counts", default=torch.zeros(counts, dtype=torch.int64), dist_reduce_fx="sum")


class CleanAccuracy(_Counts):
    """`clean_accuracy` over batches and ranks. Feed each test row once: a padded sampler counts rows twice.

    Args:
        target: the attack's target class or classes; without one `c_acc_non_target` is absent.
    """

    def __init__(self, target: Targets = None) -> None:
        super().__init__(counts=4)
        self.target = target

    def update(self, logits_or_pred: Tensor, labels: Tensor) -> None:
        """Add a batch (see `clean_accuracy`); an empty one adds nothing."""
        self.counts += clean_counts(predicted_classes(logits_or_pred), labels, self.target).to(self.device)

    def compute(self) -> dict[str, float]:
        """`c_acc` and, with a target, `c_acc_non_target`. Raises ValueError if no row was seen."""
        return _clean_result(self.counts)


class AttackSuccess(_Counts):
    """`attack_success` over batches and ranks.

    Args:
        goal: what the attacker wants.
    """

    def __init__(self, goal: Goal) -> None:
        super().__init__(counts=3)
        self.goal = goal

    def update(self, logits_or_pred: Tensor, original: Tensor) -> None:
        """Add a batch (see `attack_success`); an empty one adds nothing."""
        self.counts += attack_counts(predicted_classes(logits_or_pred), original, self.goal).to(self.device)

    def compute(self) -> dict[str, float]:
        """`asr` and `r_acc`. Raises ValueError if no row was seen."""
        return _attack_result(self.counts)


def _clean_result(counts: Tensor) -> dict[str, float]:
    hits, rows, other_hits, others = counts.tolist()
    if not rows:
        raise ValueError("clean accuracy: expected at least one row, got none")
    result = {"c_acc": hits / rows}
    return result | {"c_acc_non_target": other_hits / others} if others else result


def _attack_result(counts: Tensor) -> dict[str, float]:
    hits, rows, right = counts.tolist()
    if not rows:
        raise ValueError("attack success: expected at least one row, got none")
    return {"asr": hits / rows, "r_acc": right / rows}


def _labels(name: str, labels: Tensor, pred: Tensor) -> Tensor:
    if labels.shape != pred.shape or labels.is_floating_point():
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"{name}: expected integers of shape {tuple(pred.shape)}, got {got}")
    return labels.to(pred.device)


def _rows(values: Tensor) -> Tensor:
    return torch.tensor(len(values), device=values.device)


def _fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a fraction in [0, 1], got {value}")
