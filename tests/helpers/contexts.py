"""Small contexts, models and states to fit."""

from __future__ import annotations

import torch
from torch import nn

from backdoor.state import Split, State
from backdoor.training import Classifier
from backdoor.training.context import Hardware, RunContext


def small_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


def small_context(**kwargs) -> RunContext:
    hardware = Hardware.of(device="cpu", precision="fp32", channels_last=False, compile=False)
    return RunContext(seed=0, hardware=hardware, new_model=small_model, progress=False, **kwargs)


def small_state() -> State:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randint(0, 60, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    images[torch.arange(60), 0, labels] = 250  # a row of bright pixels tells the class
    return State(Split.of(images, labels), 3)


def fit(context: RunContext, work, epochs=6, **module):
    state, model = small_state(), context.make_model()
    rows = context.fit(
        Classifier(model=model, state=state, **{"lr": 0.3, "schedule": "cosine", **module}),
        state.train,
        name="fit",
        work=work,
        epochs=epochs,
        batch_size=10,
    )
    return model.state_dict(), rows


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)
