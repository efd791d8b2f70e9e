"""WaNet: imperceptible warping-based backdoor attack (Nguyen and Tran, ICLR 2021, arXiv 2102.10369)."""

from backdoor.attacks.wanet.module import WaNetTraining, noise_group

__all__ = ["WaNetTraining", "noise_group"]
