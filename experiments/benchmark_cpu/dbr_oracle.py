"""What is D-BR's repair worth when it is told the truth? A diagnosis of the benchmark, no defense.

python experiments/benchmark_cpu/dbr_oracle.py experiment=benchmark_cifar10_cpu data.root=CIFAR10_FOLDER attack=blended
    defense=dbr [defense.stages.repair.module.lr=1e-3 ...]

The defense runs up to its repair (what the store has is not trained again). The repair then unlearns those suspects
alone that are poisoned. After each epoch: C-Acc and ASR on some test images (`trainer.monitor_images`), and the mean
cross-entropy that the model, in eval mode, has on those rows: the smaller it is, the less slope an ascent has.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from backdoor.cli.main import run_command
from backdoor.data.loader import to_float
from backdoor.experiment.monitoring import Curves
from backdoor.experiment.place import Place
from backdoor.experiment.process import working
from backdoor.experiment.record import Record
from backdoor.experiment.run import Experiment, check
from backdoor.stages import Pipeline
from backdoor.state import Split
from backdoor.training.observing import observed_by

__all__ = ["check", "run"]  # what `run_command` wants of a program


class Oracle(Experiment):
    """A run whose last stage is handed the truth."""

    def run_stages(self, pipeline: Pipeline, state: Any, crafted: Any, measuring: Any) -> None:
        *before, repair = self.steps
        evaluator = measuring.evaluator
        state = pipeline.run(state, before, lambda finished: print(finished.step.name, flush=True))
        known = state.groups["suspect"] & evaluator.truth.poisoned
        print(f"{repair.name}: {int(known.sum())} of {int(state.groups['suspect'].sum())} suspects are poisoned")
        rows = state.train.take(known)

        def shown(model: nn.Module) -> dict[str, float]:
            found = evaluator.monitor(model) | {"cross_entropy": surprise(model, rows)}
            print({name: f"{value:.3g}" for name, value in found.items()}, flush=True)
            return found

        shown(state.model)
        state = replace(state, groups={**state.groups, "suspect": known})
        work = self.record.folder / "oracle"
        work.mkdir()
        curves = Curves(work, on_row=lambda row: None, on_stage=lambda name: None, say=print)
        curves.watch(shown, "oracle")
        with observed_by(curves):
            repair.stage.run(state, pipeline.context, name=repair.name, work=work)
        raise SystemExit(0)  # nothing of this is a result


@torch.no_grad()
def surprise(model: nn.Module, rows: Split) -> float:
    """Mean cross-entropy in nats, in float32."""
    was = model.training
    model.eval()
    losses: list[Tensor] = []
    for images, labels in zip(rows.images.split(250), rows.labels.split(250), strict=True):
        losses.append(cross_entropy(model(to_float(images)).float(), labels, reduction="none"))
    model.train(was)
    return float(torch.cat(losses).mean())


def run(cfg: DictConfig, place: Place) -> dict[str, Any]:
    """One job."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    with working(cfg.threads):
        return Oracle(cfg, Record(place.folder, config)).run()


if __name__ == "__main__":
    sys.exit(run_command("dbr_oracle"))
