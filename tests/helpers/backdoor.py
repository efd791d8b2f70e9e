"""A small network with a real backdoor, trained in a second or two: what defenses that repair models are tried on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.models import small_cnn
from backdoor.state import Split, State
from backdoor.training.context import Hardware, RunContext
from backdoor.training.inference import predict
from helpers.surrogate import digits

TARGET = 0


def context(seed: int = 0, **options) -> RunContext:
    """fp32 on the CPU; its fresh models are those that `victim` trains."""
    hardware = Hardware.of(device="cpu", precision="fp32", channels_last=False, compile=False)
    options.setdefault("say", lambda line: None)
    return RunContext(seed=seed, hardware=hardware, new_model=network, progress=False, **options)


def network() -> nn.Module:
    return small_cnn(num_classes=10, in_channels=1, image_size=16, mean=[0.3], std=[0.4], width=8)


def triggered(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) with a white square in a corner."""
    images = images.clone()
    images[:, :, -4:, -4:] = 255
    return images


def poisoned_digits(count: int = 600, reserved: int = 150) -> tuple[State, Split]:
    """(state with a tenth of the train rows poisoned and clean reserved rows, clean test rows)."""
    whole = digits(count + reserved + 200).train
    train, images = whole.take(torch.arange(count)), whole.images[:count].clone()
    labels = train.labels.clone()
    images[::10], labels[::10] = triggered(images[::10]), TARGET
    trusted = whole.take(torch.arange(count, count + reserved))
    test = whole.take(torch.arange(count + reserved, len(whole)))
    return State(Split(images, labels, train.index), 10, reserved=trusted), test


def victim(state: State, epochs: int = 12) -> nn.Module:
    """Trained on the poisoned rows, the same every time, in eval mode."""
    model, generator = context().make_model(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(state.train), generator=generator).split(32):
            loss = F.cross_entropy(model(state.train.images[rows].float() / 255), state.train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def rates(model: nn.Module, test: Split) -> tuple[float, float]:
    """(clean accuracy, attack success rate)."""
    clean = predict(model, test).eq(test.labels).float().mean()
    others = test.take(test.labels.ne(TARGET))
    attacked = Split(triggered(others.images), others.labels, others.index)
    return float(clean), float(predict(model, attacked).eq(TARGET).float().mean())
