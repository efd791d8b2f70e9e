"""LightningModules that methods share."""

from backdoor.training.batch_norm import BN_MODES, check_bn_mode, freeze_batch_norm
from backdoor.training.classifier import Classifier
from backdoor.training.module import StageModule, masked_mean

__all__ = ["BN_MODES", "Classifier", "StageModule", "check_bn_mode", "freeze_batch_norm", "masked_mean"]
