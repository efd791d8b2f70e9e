"""LightningModules that methods share."""

from backdoor.modules.base import StageModule, masked_mean
from backdoor.modules.classifier import Classifier

__all__ = ["Classifier", "StageModule", "masked_mean"]
