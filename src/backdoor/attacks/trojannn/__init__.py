"""TrojanNN: a trigger that excites chosen neurons."""

from backdoor.attacks.trojannn.mask import Mask
from backdoor.attacks.trojannn.method import excite, strongest_neurons
from backdoor.attacks.trojannn.stage import ExciteNeurons
from backdoor.attacks.trojannn.trigger import NeuronTrigger

__all__ = ["ExciteNeurons", "Mask", "NeuronTrigger", "excite", "strongest_neurons"]
