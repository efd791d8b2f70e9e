"""How well the flagged or ranked training rows agree with the truth."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc


def detection_metrics(flagged: Tensor | None, scores: Tensor | None, poisoned: Tensor) -> dict[str, float | int]:
    """Detection of poisoned rows; poison is the positive class.

    Args:
        flagged: bool (N,), the rows that a defense holds to be poisoned, or None.
        scores: float (N,), higher = more suspect, any scale, or None.
        poisoned: bool (N,), the truth.

    Returns:
        Counts `poisoned` and, with flags, `flagged`; fractions `precision`, `recall` (the true positive
        rate), `fpr`, `f1` and, with scores, `auroc` (ties count one half). Absent is what cannot be known:
        a ratio with no row in its denominator (precision with nothing flagged, recall and AUROC with no
        poison at all).

    Raises:
        ValueError: no rows, a wrong shape or dtype, NaN scores.
    """
    _check("poisoned", poisoned, poisoned, boolean=True)
    positives = int(poisoned.sum())
    result: dict[str, float | int] = {"poisoned": positives}
    if flagged is not None:
        _check("flagged", flagged, poisoned, boolean=True)
        result |= _flag_metrics(flagged.to(poisoned.device), poisoned)
    if scores is not None:
        _check("scores", scores, poisoned, boolean=False)
        if 0 < positives < len(poisoned):
            result["auroc"] = auroc(scores.to(poisoned.device), poisoned)
    return result


def auroc(scores: Tensor, poisoned: Tensor) -> float:
    """Area under the ROC curve, the share of (poisoned, clean) pairs ranked rightly.

    `scores` is float (N,) without NaN, `poisoned` bool (N,) with both values.
    """
    # binary_auroc squashes values outside [0, 1] by a sigmoid, where large scores become ties: give it ranks.
    ranks = torch.unique(scores.detach().cpu(), return_inverse=True)[1].double()
    return float(binary_auroc(ranks / ranks.max().clamp(min=1), poisoned.cpu().long()))


def _flag_metrics(flagged: Tensor, poisoned: Tensor) -> dict[str, float | int]:
    chosen, positives = int(flagged.sum()), int(poisoned.sum())
    found = int((flagged & poisoned).sum())
    result: dict[str, float | int] = {"flagged": chosen}
    ratios = {
        "precision": (found, chosen),
        "recall": (found, positives),
        "fpr": (chosen - found, len(poisoned) - positives),
        "f1": (2 * found, chosen + positives),
    }
    if not positives:  # only the false alarms are known
        ratios = {"fpr": ratios["fpr"]}
    return result | {name: part / whole for name, (part, whole) in ratios.items() if whole}


def _check(name: str, values: Tensor, like: Tensor, *, boolean: bool) -> None:
    kind_fits = values.dtype == torch.bool if boolean else values.is_floating_point()
    if values.ndim != 1 or len(values) == 0 or values.shape != like.shape or not kind_fits:
        shape = f"({len(like)},)" if like.ndim == 1 and len(like) else "(N,), N > 0"
        kind = "bool" if boolean else "float"
        raise ValueError(f"{name}: expected {kind} {shape}, got {values.dtype} {tuple(values.shape)}")
    if not boolean and values.isnan().any():
        raise ValueError(f"{name}: expected no NaN, got {int(values.isnan().sum())} of {len(values)}")
