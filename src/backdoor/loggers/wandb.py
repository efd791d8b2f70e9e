"""Weights & Biases as a run logger; the package is imported only when a run asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backdoor.errors import UserError
from backdoor.loggers.base import NO_LABEL, Label, Row, Sample

MODES = ("online", "offline", "disabled", "shared")


class WandbLogger:
    """Weights & Biases with the keys of metrics.csv; its files lie in `wandb/` inside the run's folder.

    The summary holds `final/<metric>` and `<stage>/<metric>` of result.json, so that runs can be sorted by
    `final/asr`. Without an API key the run goes on offline and says so.

    Args:
        project: W&B project.
        entity: W&B user or team; None takes the account's default.
        group: W&B group; None takes the run's own.
        mode: online, offline (`wandb sync FOLDER` sends it later), disabled, or shared.
    """

    def __init__(
        self,
        project: str = "backdoor",
        entity: str | None = None,
        group: str | None = None,
        mode: str = "online",
    ) -> None:
        if mode not in MODES:
            raise UserError(f"logger.wandb.mode: expected one of {', '.join(MODES)}, got {mode!r}: choose one")
        self.project, self.entity, self.group, self.mode = project, entity, group, mode
        self.run: Any = None

    def start(self, config: Mapping[str, Any], folder: Path, label: Label = NO_LABEL) -> None:
        """Open the run. Raises UserError if W&B refuses it (before anything has trained)."""
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        try:
            mode = "offline" if self.mode == "online" and not _has_key() else self.mode
            self.run = wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group or label.group,
                job_type=label.job_type,
                name=label.name,
                tags=list(label.tags),
                config=dict(config),
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                # Captured consoles fill with redrawn progress bars.
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"logger.wandb: expected a run in project {self.project!r}, got: {reason}; "
                "mend it or choose logger=wandb_offline"
            ) from error
        self._announce(mode, folder)

    def samples(self, shown: Sequence[Sample]) -> None:
        """Send them as the table `poisoned`."""
        if self.run is None or not shown:
            return
        from wandb import Image, Table

        table = Table(columns=["row", "role", "class before", "class after", "image"])
        for one in shown:
            table.add_data(one.row, one.role, one.before, one.after, Image(one.image))
        self.run.log({"poisoned": table})

    def log(self, row: Row) -> None:
        """Send one row."""
        if self.run is None:
            raise RuntimeError("WandbLogger.log: expected start() to be called before")
        self.run.log(dict(row))

    def finish(self, result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
        """Send summary and pictures and end the run, as failed if `result` is empty."""
        if self.run is None:
            return
        run, self.run = self.run, None
        try:
            run.summary.update(summary_keys(result))
            pictures = [path for path in figures if path.suffix in (".png", ".jpg")]
            if pictures:
                from wandb import Image

                run.log({f"figures/{path.stem}": Image(str(path)) for path in pictures})
        finally:
            # Without this, all jobs of one process would merge into one W&B run.
            run.finish(exit_code=0 if result else 1)

    def _announce(self, mode: str, folder: Path) -> None:
        if mode == "offline" and self.mode == "online":
            print("wandb: no API key, the run stays offline (`wandb login`, then `wandb sync` its folder)")
        elif mode == "online":
            print(f"wandb: {self.run.url}")


def summary_keys(result: Mapping[str, Any]) -> dict[str, float | int]:
    """`final/asr`, `isolate/detection/precision`, ...: the numbers of a result.json, flat.

    A control stage has its own name and thus its own keys.
    """
    flat = _flatten("final", result.get("final", {}))
    for stage in result.get("stages", ()):
        flat |= _flatten(str(stage["name"]), stage)
    return flat


def _flatten(prefix: str, values: Mapping[str, Any]) -> dict[str, float | int]:
    flat: dict[str, float | int] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(f"{prefix}/{key}", value)
        elif isinstance(value, (int, float)):
            flat[f"{prefix}/{key}"] = value
    return flat


def _has_key() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # wandb before `prompt` existed: its older look-up asks nothing either
        return bool(wandb.api.api_key)
