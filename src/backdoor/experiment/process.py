"""What a job changes of the process that it runs in: for as long as it runs, and not longer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")


@contextmanager
def working(threads: int | None) -> Iterator[None]:
    """CPU threads of torch (None: as many as there are now) and no hints of Lightning's; both end as they were."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with quiet():
            yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints that do not apply here: the loader needs no workers, and it has its own sampler."""
    loggers = [logging.getLogger(name) for name in LIGHTNING]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*`training_step` returned `None`.*")
            warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
