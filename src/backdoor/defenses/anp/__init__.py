"""Adversarial Neuron Pruning (Wu and Wang, NeurIPS 2021, arXiv 2110.14430)."""

from backdoor.defenses.anp.method import learn_masks, scaled, worst_case
from backdoor.defenses.anp.norms import find_norms, prune_neurons, split_by_norm
from backdoor.defenses.anp.stage import MaskNeurons
from backdoor.defenses.anp.threshold import largest_accepted

__all__ = [
    "MaskNeurons",
    "find_norms",
    "largest_accepted",
    "learn_masks",
    "prune_neurons",
    "scaled",
    "split_by_norm",
    "worst_case",
]
