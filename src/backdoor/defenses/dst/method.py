"""D-ST's contrastive loss (Chen, Wu, Wang, NeurIPS 2022), in pure torch."""

from __future__ import annotations

import torch
from torch import Tensor

from backdoor.errors import UserError, suggest

POSITIVES = ("same_label_any", "same_label_clean")


def semi_contrastive_loss(
    views: Tensor,
    labels: Tensor,
    clean: Tensor,
    *,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    positives: str = "same_label_any",
) -> Tensor:
    """Supervised contrast for rows that are trusted, SimCLR's for all others.

    For an anchor a, averaged over all 2B views:
    -(T / T0) * mean over p in P(a) of log(exp(z_a . z_p / T) / sum over q != a of exp(z_a . z_q / T)).
    P(a) is the other view of a's own image and, if a is clean, both views of every row with a's label.

    Args:
        views: float (2, B, D), unit vectors: two views of each row.
        labels: int64 (B,), as given.
        clean: bool (B,), the rows whose labels are trusted.
        positives: `same_label_any`, as in the authors' code: the rows with the same label need not be clean
            themselves; `same_label_clean`: they must.

    Returns:
        A scalar.

    Raises:
        UserError: unknown `positives`.
        ValueError: `views` is no (2, B, D).
    """
    if positives not in POSITIVES:
        raise UserError(f"positives={positives}: {suggest(positives, POSITIVES)}")
    if views.ndim != 3 or len(views) != 2 or views.shape[1] != len(labels):
        raise ValueError(f"views: expected (2, {len(labels)}, D), got {tuple(views.shape)}")
    flat = views.float().flatten(0, 1)
    logits = flat @ flat.T / temperature
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    friends = labels.eq(labels.unsqueeze(1)) & clean.unsqueeze(1)
    if positives == "same_label_clean":
        friends = friends & clean
    same_row = torch.eye(len(labels), dtype=torch.bool, device=flat.device)
    wanted = (friends | same_row).repeat(2, 2) & ~itself
    per_anchor = torch.where(wanted, log_share, 0.0).sum(1) / wanted.sum(1)
    return -(temperature / base_temperature) * per_anchor.mean()
