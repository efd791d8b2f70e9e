"""LightningModules that methods share."""

from backdoor.modules.base import StageModule, masked_mean
from backdoor.modules.batch_norm import BN_MODES, check_bn_mode, freeze_batch_norm
from backdoor.modules.classifier import Classifier

__all__ = ["BN_MODES", "Classifier", "StageModule", "check_bn_mode", "freeze_batch_norm", "masked_mean"]
