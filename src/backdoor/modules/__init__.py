"""LightningModules that methods share."""

from backdoor.modules.base import StageModule
from backdoor.modules.classifier import Classifier

__all__ = ["Classifier", "StageModule"]
