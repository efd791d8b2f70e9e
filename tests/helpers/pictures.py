"""Pictures that count how often they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from backdoor.data.imageset import Chunk


@dataclass
class Counted:
    """Pictures that count how often they are decoded."""

    key: str = "a"
    value: int = 0
    decodes: list[str] = field(default_factory=list)
    title: str = "counted"
    total: int | None = None

    def signature(self) -> str:
        return self.key

    def chunks(self) -> Iterator[Chunk]:
        self.decodes.append(self.key)
        for start in (0, 5):
            images = np.arange(start * 12, (start + 5) * 12, dtype=np.int64).reshape(5, 3, 2, 2) + self.value
            yield Chunk(images.astype(np.uint8), np.arange(start, start + 5), skipped=1)
