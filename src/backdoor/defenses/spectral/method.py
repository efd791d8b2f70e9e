"""Spectral Signatures (Tran, Li, Madry, NeurIPS 2018, arXiv 1811.00636), in pure torch."""

from __future__ import annotations

import torch
from torch import Tensor

from backdoor.checking.ranges import Share
from backdoor.defenses.features import Detection
from backdoor.errors import UserError

# Algorithm 1 of the paper removes 1.5 times as many rows as are thought to be poisoned.
MARGIN = 1.5


def spectral_signatures(features: Tensor, *, poison_share: Share = 0.1) -> Detection:
    """Squared projections of a class's centred features on their first right singular vector (Algorithm 1).

    Args:
        features: float (n, D), the rows of one label.
        poison_share: epsilon, an upper bound of the poisoned share of the class; 1.5 times as many rows are flagged.

    Returns:
        tau = ((R(x) - mean) . v)^2, and the int(1.5 * epsilon * n) rows with the largest.

    Raises:
        UserError: a share outside (0, 2/3).
    """
    if not isinstance(poison_share, int | float) or not 0 < MARGIN * poison_share < 1:
        raise UserError(
            f"poison_share={poison_share}: expected a share between 0 and 2/3 (1.5 times as many rows are flagged), "
            "for instance 0.1"
        )
    centred = (features - features.mean(0)).double()
    # The first right singular vector, from the D x D matrix: D is far smaller than n, and nothing is drawn.
    direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    scores = (centred @ direction).square()
    flagged = torch.zeros(len(scores), dtype=torch.bool)
    flagged[scores.argsort(descending=True, stable=True)[: int(MARGIN * poison_share * len(scores))]] = True
    return Detection(scores.float(), flagged & scores.gt(0))
