"""What a dashboard is told of a run besides its numbers: its names, and some poisoned images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from omegaconf import DictConfig, OmegaConf

from backdoor.attacks import Poisoned
from backdoor.data.sources import DataSet
from backdoor.loggers.base import Label, Sample

SAMPLES = 32  # poisoned images that a dashboard shows


def label_of(cfg: DictConfig, choices: Mapping[str, str | None]) -> Label:
    """The run's names; its group is the study (`experiment=`), or else the data."""
    tags = [cfg.attack.name, cfg.defense.name, cfg.data.name, choices.get("model")]
    ratio = OmegaConf.select(cfg, "attack.ratio")
    tags += [f"ratio {ratio}"] if ratio is not None else []
    return Label(
        name=f"{cfg.attack.name}-{cfg.defense.name}-{cfg.seed}",
        group=str(choices.get("experiment") or cfg.data.name),
        job_type=cfg.defense.name,
        tags=[str(tag) for tag in [*tags, f"seed {cfg.seed}"] if tag],
    )


def poisoned_samples(poisoned: Poisoned, data: DataSet) -> list[Sample]:
    """Some of the planned rows, evenly spread, as they are trained on; none where nothing was planned."""
    plan, train = poisoned.plan, poisoned.train
    if plan is None or len(plan.rows) == 0:
        return []
    found = []
    for at in torch.linspace(0, len(plan.rows) - 1, min(SAMPLES, len(plan.rows))).long().tolist():
        row = int(plan.rows[at])
        image = train.images[row].permute(1, 2, 0).squeeze(-1).numpy()
        before = data.train.labels[int(train.index[row])]
        after = data.classes[int(train.labels[row])]
        role = plan.roles[int(plan.role[at])]
        found.append(Sample(int(train.index[row]), role, data.classes[int(before)], after, image))
    return found
