"""Where a job runs, as far as its config does not say so: its folder, its words for dashboards, its logging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class Place:
    """What whoever starts a job tells it; the command line has it from Hydra.

    Attributes:
        folder: gets all that the job leaves.
        choices: group -> the choice that was made in it (`model` -> `wrn16_1`), shown by dashboards.
        logging: for processes that the job starts, as `logging.config.dictConfig` has it; None: Python's own.
        verbose: Hydra's setting of that name, which raises the level of some loggers.
    """

    folder: Path
    choices: Mapping[str, str | None] = field(default_factory=dict)
    logging: Mapping[str, Any] | None = None
    verbose: Any = False

    @staticmethod
    def of(node: Any) -> Place:
        """What Hydra's own node (`HydraConfig.get()`) says of a running job."""
        logging = OmegaConf.to_container(node.job_logging, resolve=True)
        assert isinstance(logging, dict)
        verbose = OmegaConf.to_container(node.verbose) if OmegaConf.is_config(node.verbose) else node.verbose
        choices = {str(group): name for group, name in node.runtime.choices.items()}
        return Place(Path(node.runtime.output_dir), choices, {str(key): one for key, one in logging.items()}, verbose)
