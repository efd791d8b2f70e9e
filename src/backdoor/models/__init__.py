"""Classifiers: float [0, 1] images in, logits out; normalisation inside.

The names in small letters are the choices of conf/model: `wrn16_1(num_classes=10)`.
"""

from functools import partial

from backdoor.models.base import ImageClassifier
from backdoor.models.preact_resnet import PreActResNet, preact_resnet18
from backdoor.models.small_cnn import small_cnn
from backdoor.models.torchvision_nets import TorchvisionClassifier, torchvision_net
from backdoor.models.wide_resnet import WideResNet

# The choices of conf/model, beside preact_resnet18 and small_cnn.
convnext_tiny = partial(torchvision_net, name="convnext_tiny")
densenet161 = partial(torchvision_net, name="densenet161")
efficientnet_b3 = partial(torchvision_net, name="efficientnet_b3")
mobilenet_v3_large = partial(torchvision_net, name="mobilenet_v3_large")
resnet18 = partial(torchvision_net, name="resnet18")
vgg19 = partial(torchvision_net, name="vgg19")
vgg19_bn = partial(torchvision_net, name="vgg19_bn")
vit_b_16 = partial(torchvision_net, name="vit_b_16")
wrn16_1 = partial(WideResNet, depth=16, widen=1)
wrn28_10 = partial(WideResNet, depth=28, widen=10)

__all__ = [
    "ImageClassifier",
    "PreActResNet",
    "TorchvisionClassifier",
    "WideResNet",
    "convnext_tiny",
    "densenet161",
    "efficientnet_b3",
    "mobilenet_v3_large",
    "preact_resnet18",
    "resnet18",
    "small_cnn",
    "torchvision_net",
    "vgg19",
    "vgg19_bn",
    "vit_b_16",
    "wrn16_1",
    "wrn28_10",
]
