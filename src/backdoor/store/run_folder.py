"""The folder that a run leaves: how its files are called, and reading them without trusting any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor.store.untrusted import Unreadable, read_json, read_yaml

RESULT, STATUS, CONFIG = "result.json", "status.json", "config.yaml"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; nothing is read before it is asked for."""

    path: Path

    @property
    def plan(self) -> Path:
        """Which rows were poisoned (npz)."""
        return self.path / "plan.npz"

    @property
    def trigger(self) -> Path:
        """The tensors that the triggers paint with; there for attacks whose triggers have some."""
        return self.path / "trigger.safetensors"

    def weights(self, stage: str) -> Path:
        """The model that a stage left."""
        return self.path / "weights" / f"{stage}.safetensors"

    def isolated(self, stage: str) -> Path:
        """The rows that a stage flagged (npz); there if it flagged any."""
        return self.path / f"{stage}.npz"

    def stages_with_weights(self) -> list[str]:
        """Names of the stages that left a model, sorted."""
        return sorted(path.stem for path in (self.path / "weights").glob("*.safetensors"))

    def figures(self) -> list[Path]:
        """The pictures, sorted by name."""
        return sorted((self.path / "figures").glob("*.png"))

    def read(self, file: str) -> Any:
        """The plain value in one of the folder's JSON or YAML files.

        Raises:
            OSError: it cannot be read.
            Unreadable: it holds anything else.
        """
        path = self.path / file
        return read_yaml(path) if path.suffix == ".yaml" else read_json(path)

    def mapping(self, file: str) -> dict[str, Any]:
        """`read`, of a file that holds a mapping.

        Raises:
            OSError, Unreadable: as `read`, or it holds another value.
        """
        value = self.read(file)
        if not isinstance(value, dict):
            raise Unreadable(f"{file} cannot be read; expected a mapping, got {type(value).__name__}")
        return value

    def state(self) -> str:
        """What the run says of itself: running, done, failed or interrupted, and its error; `state unknown` without."""
        try:
            status = self.read(STATUS)
            error = f": {status['error']}" if status.get("error") else ""
            return " ".join(f"{status['state']}{error}".split())[:300]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "state unknown"
