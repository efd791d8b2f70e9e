"""SD of D-ST/D-BR: the FCT metric (Chen, Wu, Wang, NeurIPS 2022)."""

from backdoor.defenses.fct.method import centre_similarity, feature_change, transformed
from backdoor.defenses.fct.module import CentreSpreading
from backdoor.defenses.fct.stage import FeatureConsistency

__all__ = ["CentreSpreading", "FeatureConsistency", "centre_similarity", "feature_change", "transformed"]
