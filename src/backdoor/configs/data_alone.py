"""The part of a config that names of classes are asked of."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor.checking.expectations import Section
from backdoor.data.sources import Source


@dataclass(frozen=True)
class DataAlone(Section):
    """What must be right before the names of classes can be asked for."""

    data: Source
