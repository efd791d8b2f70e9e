"""SSBA (ISSBA): a message hidden in each image by an encoder network; the residual differs from image to image."""

from backdoor.attacks.ssba.method import Decoder, Encoder
from backdoor.attacks.ssba.module import StegoTraining
from backdoor.attacks.ssba.stage import TrainEncoder
from backdoor.attacks.ssba.trigger import Steganography

__all__ = ["Decoder", "Encoder", "Steganography", "StegoTraining", "TrainEncoder"]
