"""Images: found, decoded once into one uint8 array, reopened as a memory map, served in batches."""

from __future__ import annotations

from backdoor.data.arrays import Arrays
from backdoor.data.augment import make_augment
from backdoor.data.digits import Digits
from backdoor.data.folder import Folder
from backdoor.data.reserve import split_reserved
from backdoor.data.sources import DataSet, ImageSet, Source, load_images
from backdoor.data.tiny_imagenet import TinyImageNet
from backdoor.data.torchvision_sets import Cifar10, Cifar100, FashionMnist, Gtsrb, Mnist

__all__ = [
    "Arrays",
    "Cifar10",
    "Cifar100",
    "DataSet",
    "Digits",
    "FashionMnist",
    "Folder",
    "Gtsrb",
    "ImageSet",
    "Mnist",
    "Source",
    "TinyImageNet",
    "load_images",
    "make_augment",
    "split_reserved",
]
