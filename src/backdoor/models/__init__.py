"""Classifiers: float [0, 1] images in, logits out; normalisation inside."""

from backdoor.models.base import ImageClassifier
from backdoor.models.preact_resnet import PreActResNet, preact_resnet18
from backdoor.models.small_cnn import small_cnn
from backdoor.models.torchvision_nets import TorchvisionClassifier, torchvision_net
from backdoor.models.wide_resnet import WideResNet

__all__ = [
    "ImageClassifier",
    "PreActResNet",
    "TorchvisionClassifier",
    "WideResNet",
    "preact_resnet18",
    "small_cnn",
    "torchvision_net",
]
