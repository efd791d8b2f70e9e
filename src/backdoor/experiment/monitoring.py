"""The evaluator's curves: what each epoch's model does on some test images, kept apart from what stages can reach."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from backdoor.stages import Finished
from backdoor.store.ranks import rank
from backdoor.store.store import fingerprint, write_json

KIND = "curve"
Measure = Callable[[nn.Module], dict[str, float]]
Place = tuple[str, int]  # stage, epoch


class Curves:
    """Listens to a run (`backdoor.training.observing`): measures its epochs and hands the rows on.

    A stage's curve lies in the store beside its artifact, in `<store>/curve/`, addressed by the artifact's key AND the
    test images that it was measured on. So a stage from the store, or one that goes on after a kill, gets its curve
    back only where it is a curve of the very images that this run watches.

    Args:
        root: the store's folder.
        on_row: called with each row once it is whole.
        on_stage: called with the name of each stage as it begins.
        say: prints one line.
    """

    def __init__(
        self,
        root: Path,
        *,
        on_row: Callable[[dict[str, Any]], None],
        on_stage: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self.root, self.on_row, self.say = root, on_row, say
        self.began = on_stage
        self.measure: Measure | None = None
        self.watched = ""
        self.key = ""
        self.known: dict[Place, dict[str, float]] = {}

    def watch(self, measure: Measure, watched: str) -> None:
        """From now on measure each epoch's model; `watched` is the digest of the test images and of how."""
        self.measure, self.watched = measure, watched

    def on_stage(self, name: str, key: str) -> None:
        """A stage begins: take up what is known of its epochs."""
        self.key, self.known = key, {}
        if self.measure is not None:
            self.known = read_curve(self.path())
        self.began(name)

    def on_epoch(self, row: dict[str, Any], model: nn.Module | None) -> None:
        """Measure the model, keep that, hand the row on."""
        if self.measure is not None:
            if model is not None:
                self.known[place_of(row)] = self.measure(model)
            if rank() == 0:
                self.write()
        self.on_row(self.whole(row))

    def on_resumed(self, row: dict[str, Any]) -> None:
        """An epoch of a killed call: hand the row on with what was measured then."""
        self.on_row(self.whole(row))

    def whole(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row of the current stage with what was measured of its epoch, if that is known."""
        return {**row, **self.known.get(place_of(row), {})}

    def completed(self, finished: Finished) -> Finished:
        """The current stage with its whole history; says so if it is from the store and has no curve of these images.

        A victim that the attacker made was trained before there was a test set, and never has one.
        """
        if finished.key != self.key:
            return finished
        if finished.hit and finished.history and self.measure is not None and not self.path().exists():
            self.say(
                f"{finished.step.name}: from the store, where no curve of C-Acc and ASR over its epochs on these test "
                "images lies (trainer.monitor_images or the attack was another when it was trained): left out"
            )
        return replace(finished, history=[self.whole(row) for row in finished.history])

    def path(self) -> Path:
        """The file of the current stage's curve."""
        return self.root / KIND / f"{fingerprint([self.key, self.watched])}.json"

    def write(self) -> None:
        """Keep what is known of the current stage, atomically."""
        path = self.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [[stage, epoch, values] for (stage, epoch), values in self.known.items()])


def place_of(row: Mapping[str, Any]) -> Place:
    """Where a row belongs: (stage, epoch)."""
    return str(row["stage"]), int(row["epoch"])


def read_curve(path: Path) -> dict[Place, dict[str, float]]:
    """What `Curves` wrote; nothing where there is no file, or none that can be read."""
    try:
        found = json.loads(path.read_text())
        return {
            (str(stage), int(epoch)): {str(name): float(value) for name, value in values.items()}
            for stage, epoch, values in found
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
