"""DBD's formulas (Huang et al., ICLR 2022) and those of SimCLR, SCE and MixMatch that it uses, in pure torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_LABEL = 1e-4  # what log(0) of a one-hot label is replaced by the log of; symmetric cross-entropy's A = -9.21
SMALLEST_PROBABILITY = 1e-7


def contrastive_loss(views: Tensor, *, temperature: float = 0.5, symmetric: bool = False) -> Tensor:
    """NT-Xent: each row's two views against all other views of the batch (Chen et al., ICML 2020, equation 1).

    Args:
        views: float (2, B, D), unit vectors.
        symmetric: both views are anchors, as in SimCLR; else the first alone, as in DBD's code.

    Returns:
        A scalar: the mean over anchors of logsumexp over q != a of (z_a . z_q / T), minus z_a . z_partner / T.

    Raises:
        ValueError: `views` is no (2, B, D).
    """
    if views.ndim != 3 or len(views) != 2:
        raise ValueError(f"views: expected (2, B, D), got {tuple(views.shape)}")
    count = views.shape[1]
    flat = views.float().flatten(0, 1)
    anchors = 2 * count if symmetric else count
    logits = flat[:anchors] @ flat.T / temperature
    own = torch.arange(anchors, device=flat.device)
    itself = own.unsqueeze(1) == torch.arange(2 * count, device=flat.device)
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), (own + count) % (2 * count))


def symmetric_cross_entropy(logits: Tensor, labels: Tensor, *, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """alpha * CE + beta * RCE of each row: float32 (B,) (Wang et al., ICCV 2019, equation 7).

    RCE swaps prediction and label: - sum over k of p_k log(y_k), with log(0) taken as log(1e-4).

    Args:
        logits: (B, K).
        labels: int64 (B,).
    """
    logits = logits.float()
    probabilities = logits.softmax(1).clamp(min=SMALLEST_PROBABILITY)
    wanted = F.one_hot(labels, logits.shape[1]).to(logits).clamp(min=SMALLEST_LABEL)
    reverse = -(probabilities * wanted.log()).sum(1)
    return alpha * F.cross_entropy(logits, labels, reduction="none") + beta * reverse


def sharpen(probabilities: Tensor, temperature: float = 0.5) -> Tensor:
    """p^(1/T), normalised: (B, K) -> (B, K) (Berthelot et al., NeurIPS 2019, equation 7)."""
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def interleave(batch: Tensor, parts: int) -> Tensor:
    """(parts * b, ...) -> the same rows in another order, such that each part has a share of every part.

    Part j of the result takes slice j of part 0 in exchange for slice j of its own; so BatchNorm sees labelled rows in
    every part. Applied twice it gives back what it was given (MixMatch's code).

    Raises:
        ValueError: the rows do not divide into `parts` equal parts.
    """
    if len(batch) % parts:
        raise ValueError(f"batch: expected a multiple of {parts} rows, got {len(batch)}")
    pieces = [list(part.tensor_split(parts)) for part in batch.chunk(parts)]
    for j in range(1, parts):
        pieces[0][j], pieces[j][j] = pieces[j][j], pieces[0][j]
    return torch.cat([piece for part in pieces for piece in part])


def credible_rows(losses: Tensor, share: float, labels: Tensor | None = None) -> Tensor:
    """bool (N,): the rows of the lowest losses, int(share * N) of them; with labels, that share of each class.

    Args:
        losses: float (N,).
        share: in (0, 1).
        labels: int64 (N,); balances the choice.
    """
    chosen = torch.zeros(len(losses), dtype=torch.bool)
    groups = [torch.arange(len(losses))] if labels is None else [(labels == k).nonzero()[:, 0] for k in labels.unique()]
    for rows in groups:
        chosen[rows[losses[rows].argsort(stable=True)[: int(share * len(rows))]]] = True
    return chosen
