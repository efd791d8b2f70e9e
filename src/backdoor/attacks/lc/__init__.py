"""LC: the label-consistent (clean-label) attack."""

from backdoor.attacks.lc.method import in_ball, pgd, to_pixels
from backdoor.attacks.lc.module import AdversarialClassifier
from backdoor.attacks.lc.stage import Perturb
from backdoor.attacks.lc.trigger import Perturbed

__all__ = ["AdversarialClassifier", "Perturb", "Perturbed", "in_ball", "pgd", "to_pixels"]
