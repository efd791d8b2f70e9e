"""A finished run, opened: its numbers, figures, models and data. Its folder may be a stranger's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from backdoor.attacks import Attack, Means, Poisoned, PoisonPlan
from backdoor.configs.finished import SETTING, open_folder, read_text
from backdoor.configs.in_process import compose_job, told, word_of
from backdoor.configs.safe import check_safe
from backdoor.data.sources import DataSet
from backdoor.errors import UserError, suggest
from backdoor.experiment.build import model_facts
from backdoor.experiment.datasets import CleanData, ImageData, PoisonedData, poisoned_data
from backdoor.experiment.preparation import Preparation
from backdoor.models.base import ImageClassifier
from backdoor.report.records import BadRecord, read
from backdoor.stages import Stage
from backdoor.state import Split, State, Truth
from backdoor.store.run_folder import CONFIG
from backdoor.store.weights import has_preprocess, load_weights

EXTERNAL = "backdoor.attacks.External"


@dataclass(frozen=True)
class StageRecord:
    """One stage of a finished run, as result.json has it; `stage["asr"]` is one of its numbers."""

    name: str
    entry: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.entry[key]

    @property
    def detection(self) -> Mapping[str, float]:
        """Precision, recall, AUROC, ... of the rows that it flagged or scored; empty if it did neither."""
        return self.entry.get("detection", {})

    @property
    def findings(self) -> Mapping[str, float]:
        """Its own numbers."""
        return self.entry.get("findings", {})


@dataclass(frozen=True)
class Loaded:
    """A run's data and what its attack made of them."""

    data: DataSet
    train: Split
    test: Split
    reserved: Split | None
    attack: Attack
    poisoned: Poisoned


class Run:
    """A finished run.

    Nothing in the folder is unpickled, and no class is made that the installed configs do not name. Images, models and
    the attack are loaded when they are first asked for.

    Args:
        folder: what the run printed at its end.
        words: where its images lie on this machine, if elsewhere: `data.root=PATH`.

    Attributes:
        result: the content of result.json.

    Raises:
        UserError: no folder of a finished run; later, what is damaged or missing.
    """

    def __init__(self, folder: str | Path, words: Sequence[str] = ()) -> None:
        self.source = f"run={folder}"
        self.files = open_folder(str(folder), self.source)
        self.folder, self.words = self.files.path, tuple(words)
        try:
            self.result = read(self.folder)
        except BadRecord as error:
            raise UserError(f"{self.source}: {error}") from None

    def __repr__(self) -> str:
        return f"<Run {self.result.get('attack')}-{self.result.get('defense')} in {self.folder}>"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config, as plain values."""
        return read_text(self.files, self.source, CONFIG)

    @property
    def final(self) -> dict[str, Any]:
        """What holds at the end: `c_acc`, `asr`, ..."""
        return dict(self.result["final"])

    @property
    def stages(self) -> list[StageRecord]:
        """In the order in which they ran."""
        return [StageRecord(str(entry["name"]), entry) for entry in self.result["stages"]]

    def stage(self, name: str) -> StageRecord:
        """The stage of that name; raises UserError if there is none."""
        found = {stage.name: stage for stage in self.stages}
        if name not in found:
            raise UserError(f"{self.source}: has no stage {name}; {suggest(name, found)}")
        return found[name]

    @property
    def figures(self) -> list[Path]:
        """The pictures that the run drew."""
        return self.files.figures()

    @cached_property
    def plan(self) -> PoisonPlan | None:
        """The poisoned rows, their roles and labels; None if the run planted nothing itself."""
        return PoisonPlan.load(self.files.plan, "run") if self.files.plan.is_file() else None

    def model(self, stage: str | None = None) -> nn.Module:
        """The model that a stage left, in eval mode on the CPU: float [0, 1] images (B, C, H, W) -> logits (B, K).

        Args:
            stage: its name; None: the last one that left a model, controls aside.

        Raises:
            UserError: no such stage or weights; weights of another architecture.
        """
        there = self.files.stages_with_weights()
        if stage is None:
            left = [one.name for one in self.stages if one.name in there and not one.entry.get("control")]
            if not left:
                raise UserError(f"{self.source}: holds no weights; a model of your own that was defended is not copied")
            stage = left[-1]
        if stage not in there:
            raise UserError(f"{self.source}: holds no weights of a stage {stage}; {suggest(stage, there)}")
        model = self.network()
        weights = self.files.weights(stage)
        if has_preprocess(weights, setting="run") and isinstance(model, ImageClassifier):
            model.preprocess = self.preprocess(stage)
        load_weights(model, weights, setting="run")
        return model.eval()

    def network(self) -> nn.Module:
        """The run's network, untrained."""
        node = self.config.get("model")
        check_safe(node, self.source, "model")
        with torch.random.fork_rng(devices=[]):
            return self.made(node, **self.facts)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`num_classes`, `in_channels`, `image_size`, `mean` and `std`; from the images, for a run that kept none."""
        images = self.result.get("images")
        if not isinstance(images, dict) or not isinstance(images.get("network"), dict):
            return model_facts(self.loaded.data)
        return images["network"]

    def preprocess(self, stage: str) -> nn.Module:
        """What cleans the input of a stage's model, untrained: the stage makes it, or one before it did."""
        nodes = {"victim": self.config.get("victim"), **self.config["defense"]["stages"]}
        before = list(nodes)[: list(nodes).index(stage) + 1] if stage in nodes else []
        for name in reversed(before):
            check_safe(nodes[name], self.source, name, groups=("defense", "victim"))
            made = self.made(nodes[name])
            found = self.loaded
            state = State(found.poisoned.train, found.data.num_classes, found.reserved)
            cleans = made.preprocess(state) if isinstance(made, Stage) else None
            if cleans is not None:
                return cleans
        raise UserError(f"{self.source}: no stage of its config makes the module that cleans {stage}'s input")

    def made(self, node: Any, **facts: Any) -> Any:
        """What a checked part of the config stands for."""
        try:
            return instantiate(OmegaConf.create(node), **facts, _convert_="all")
        except Exception as error:
            raise told(error) from error

    @cached_property
    def data(self) -> CleanData:
        """The images as they were before the attack."""
        found = self.loaded
        wrapped = partial(ImageData, classes=found.data.classes)
        reserved = None if found.reserved is None else wrapped(found.reserved)
        train, test = self.preparation.splits(found.data)[:2]
        return CleanData(wrapped(train), wrapped(test), reserved, found.data.classes)

    @cached_property
    def poisoned(self) -> PoisonedData:
        """The train set as it was, and the test sets, clean and triggered."""
        found = self.loaded
        trigger = getattr(found.attack, "trigger", None)
        return poisoned_data(
            str(self.result["attack"]),
            found.poisoned.train,
            found.poisoned.truth,
            found.data.classes,
            plan=found.poisoned.plan,
            trigger=None if trigger is None else trigger.at_test(),
        )

    @property
    def truth(self) -> Truth:
        """What only the evaluator saw."""
        return self.loaded.poisoned.truth

    @cached_property
    def loaded(self) -> Loaded:
        """Data, trusted rows and attack, made as the run made them."""
        job = self.preparation
        data = job.load()
        train, test, reserved = job.splits(data)
        means = Means(job.cfg.seed, job.store.root, device=job.hardware.device)
        return Loaded(data, train, test, reserved, job.attack, job.attack.prepare(data, train, test, means))

    @cached_property
    def preparation(self) -> Preparation:
        """The parts of a job that takes this run's data and attack and does nothing with them."""
        try:
            return Preparation(self.job())
        except Exception as error:
            raise told(error) from error

    def job(self) -> DictConfig:
        """Its config: this package's own, with the run's data and attack in it (see `configs.adopt`)."""
        attack = self.config.get("attack")
        own = dict(attack) if isinstance(attack, dict) else {}
        if own.get("_target_") != EXTERNAL:
            folder = own.get("run") or self.folder  # a run on a run has that one's attack
            return self.composed(word_of(SETTING, Path(str(folder)).expanduser()))
        check_safe({"data": self.config.get("data"), "attack": own}, self.source, "config")
        name = self.config["data"]["name"]
        cfg = self.composed(word_of("data", str(name)))
        with open_dict(cfg):
            for part in ("data", "model", "seed", "reserved", "attack"):
                cfg[part] = self.config[part]
        return cfg

    def composed(self, *words: str) -> DictConfig:
        """A job that defends nothing."""
        return compose_job(["attack=external", *words, "defense=none", *self.words]).cfg
