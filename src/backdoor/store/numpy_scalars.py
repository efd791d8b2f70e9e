"""NumPy's numbers in a checkpoint, such as the best accuracy that a training script saved beside the weights.

`torch.load(weights_only=True)` refuses them. Their pickle calls two functions of NumPy, which are replaced here, for
the time of a load, by two that make a number and can do nothing else: NumPy's own would let a file set any flag of a
dtype, and so have bytes of the file taken for the address of an object.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

KINDS = "biufc"  # bool, integers, floats, complex


class Kind:
    """What a pickle says of a number: its dtype's code, such as `f8`, and its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def number(kind: Kind, content: bytes) -> Any:
    """A NumPy scalar from its bytes.

    Raises:
        ValueError: another kind than a number, or bytes of another length.
    """
    dtype = np.dtype(kind.code).newbyteorder(kind.order)
    if dtype.kind not in KINDS or len(content) != dtype.itemsize:
        raise ValueError(f"expected the bytes of one number, got {len(content)} for {kind.code}")
    return np.frombuffer(content, dtype)[0]


def numbers_allowed() -> AbstractContextManager[None]:
    """A context in which `torch.load(weights_only=True)` reads NumPy's numbers, of NumPy 1 and 2."""
    names: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Kind, "numpy.dtype")]
    names += [(number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return torch.serialization.safe_globals(names)
