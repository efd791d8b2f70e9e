"""What a run leaves in its folder while it runs and when it ends."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from backdoor.attacks import Poisoned
from backdoor.data.sources import DataSet
from backdoor.errors import UserError
from backdoor.experiment.build import model_facts
from backdoor.experiment.environment import environment
from backdoor.experiment.memory import peak_memory, restart_peaks
from backdoor.figures.curves import epoch_curves, stage_curves
from backdoor.figures.figures import loss_histogram, trigger_gallery
from backdoor.figures.gallery import write_gallery
from backdoor.metrics.names import model_name
from backdoor.report.records import SCHEMA
from backdoor.stages import Finished
from backdoor.state import AttackSet, Split, State
from backdoor.store.npz import save_npz
from backdoor.store.store import Store, link_or_copy, write_json
from backdoor.store.weights import save_tensors

GALLERY = 8
OF_ONE_STAGE = ("name", "seconds", "stored", "stored_with", "tried", "collapsed")  # never part of `final`


class Record:
    """The run's folder: status, config, environment, results, weights, isolated rows, figures."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.stages: list[dict[str, Any]] = []
        self.crafting: list[dict[str, Any]] = []
        self.attacks: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.figures: list[Path] = []
        self.images: dict[str, Any] = {}
        self.victim = "none"
        self.environment = environment()
        self.started, self.clock = datetime.now(UTC), time.perf_counter()
        restart_peaks()
        try:
            for part in (folder, folder / "weights", folder / "figures"):
                part.mkdir(parents=True, exist_ok=True)
            self.status("running")
            (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            write_json(folder / "environment.json", self.environment)
        except OSError as error:
            raise UserError(f"hydra.run.dir={folder}: cannot be written ({error.strerror})") from None

    def status(self, state: str, error: str | None = None, **where: Any) -> None:
        """Write status.json: `state` is running, done, failed or interrupted; `where` says how far a running one is."""
        status = {"state": state, "victim": self.victim, **where}
        write_json(self.folder / "status.json", status | ({"error": error} if error else {}))

    def about(self, data: DataSet) -> None:
        """Keep what a model must know of the images, so that its weights can be loaded without them."""
        self.images = {"classes": list(data.classes), "network": model_facts(data)}

    def stage(self, finished: Finished, entry: dict[str, Any], store: Store, key: str) -> None:
        """Add a stage's row and keep its weights and isolated rows."""
        self.stages.append(entry)
        self.history += finished.history
        name = finished.step.name
        weights = store.folder("victim" if name == "victim" else "stage", key) / "model.safetensors"
        if weights.exists():
            link_or_copy(weights, self.folder / "weights" / f"{name}.safetensors")
        if "suspect" in finished.step.stage.provides:
            save_isolated(finished.state, self.folder / f"{name}.npz")

    def crafted(self, steps: Sequence[Finished], tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep what the attacker made: how long it took, what it found, and the triggers' tensors."""
        for finished in steps:
            name = finished.step.name
            entry = {"name": name, "seconds": finished.seconds, "findings": finished.numbers()}
            self.crafting.append(entry | ({"stored_with": dict(found)} if (found := finished.stored_with) else {}))
            if name != "victim":  # whose curves come with its row of the table
                self.history += finished.history
        if tensors:
            found = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
            save_tensors(found, self.folder / "trigger.safetensors")

    def draw(self, poisoned: Poisoned, clean_test: Split, data: DataSet) -> None:
        """Each attack test set by name, and the gallery: the same test images without and with its trigger."""
        for place, (name, attack) in enumerate(poisoned.truth.attacks.items()):
            word, metric = re.sub(r"\W", "_", name), f"asr/{name}" if place else "asr"
            self.attacks.append({"name": name, "metric": metric, "goal": attack.goal.kind, "images": len(attack.split)})
            self.draw_trigger(attack, clean_test, data, f"trigger_{word}.png" if place else "trigger.png")

    def draw_trigger(self, made: AttackSet, clean_test: Split, data: DataSet, file: str) -> None:
        """One trigger, where the clean images are known."""
        attack = made.split
        if not torch.isin(attack.index, clean_test.index).all():
            return
        rows = torch.linspace(0, len(attack) - 1, min(GALLERY, len(attack))).long()
        shown = attack.take(rows)
        where = torch.searchsorted(clean_test.index, shown.index)
        path = self.folder / "figures" / file
        trigger_gallery(
            clean_test.images[where],
            shown.images,
            path,
            labels=shown.labels,
            targets=made.goal.wanted(shown.labels),
            classes=data.classes,
        )
        self.figures.append(path)

    def draw_scores(self, finished: Finished, poisoned: torch.Tensor | None) -> None:
        """A histogram of each score that the stage gave."""
        for name in finished.state.scores:
            if name in finished.step.stage.provides:
                path = self.folder / "figures" / f"{finished.step.name}_{name}.png"
                flagged = finished.state.groups.get("suspect")
                values = finished.state.scores[name]
                title = f"{finished.step.name}: {name.replace('_', ' ')} of the training rows"
                loss_histogram(values, poisoned, flagged, path, title)
                self.figures.append(path)

    def finish(self) -> dict[str, Any]:
        """Draw the curves, write result.json and close the status."""
        if any("c_acc" in stage for stage in self.stages):
            self.figures.append(stage_curves(self.stages, self.folder / "figures" / "stages.png"))
        if self.history:
            self.figures.append(epoch_curves(self.history, self.folder / "figures" / "epochs.png"))
        result = self.result()
        write_gallery(self.folder, result)
        write_json(self.folder / "result.json", result)
        self.status("done")
        return result

    def result(self) -> dict[str, Any]:
        """The content of result.json: enough to know what was run, where, and what came out, without another file."""
        shown = [stage for stage in self.stages if not stage.get("control")]
        # What holds at the end: of the last stage that measured it. A pure detector leaves the victim as it was.
        merged = {name: value for stage in shown for name, value in stage.items()}
        return {
            "schema": SCHEMA,
            "data": self.config["data"]["name"],
            "attack": self.config["attack"]["name"],
            "defense": self.config["defense"]["name"],
            "model": model_name(self.config["model"]),
            "seed": self.config["seed"],
            **({"attacks": self.attacks} if self.attacks else {}),
            **({"crafting": self.crafting} if self.crafting else {}),
            **({"images": self.images} if self.images else {}),
            "stages": self.stages,
            "final": {name: value for name, value in merged.items() if name not in OF_ONE_STAGE},
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self.clock, 2),
            "peak_memory": peak_memory(),
            "environment": self.environment,
            "config": self.config,
        }


def save_isolated(state: State, path: Path) -> None:
    """npz of the suspect rows: index, score, and images and labels, so that unlearning needs nothing else."""
    rows = state.groups["suspect"].nonzero().flatten()
    split = state.train.take(rows)
    arrays: dict[str, np.ndarray] = {
        "index": split.index.numpy(),
        "images": split.images.numpy(),
        "labels": split.labels.numpy(),
    }
    if state.scores:
        arrays["score"] = list(state.scores.values())[-1][rows].numpy()
    save_npz(path, **arrays)
