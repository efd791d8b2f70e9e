"""DBD (Huang et al., ICLR 2022): features learnt without labels, then a classifier that trusts the easy rows."""

from backdoor.defenses.dbd.method import (
    contrastive_loss,
    credible_rows,
    interleave,
    sharpen,
    symmetric_cross_entropy,
)
from backdoor.defenses.dbd.mixmatch import CredibleRows, MixMatch
from backdoor.defenses.dbd.module import Contrast, SymmetricHead

__all__ = [
    "Contrast",
    "CredibleRows",
    "MixMatch",
    "SymmetricHead",
    "contrastive_loss",
    "credible_rows",
    "interleave",
    "sharpen",
    "symmetric_cross_entropy",
]
