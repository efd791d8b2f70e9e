"""D-ST: distinguish, then train from scratch (Chen, Wu, Wang, NeurIPS 2022)."""

from backdoor.defenses.dst.method import semi_contrastive_loss
from backdoor.defenses.dst.module import MixedHead, SemiContrastive

__all__ = ["MixedHead", "SemiContrastive", "semi_contrastive_loss"]
