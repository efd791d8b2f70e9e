"""One run, a straight line: data -> attack -> victim -> defense -> evaluation -> record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from backdoor.attacks import Means, Poisoned
from backdoor.configs.adopt import value_at
from backdoor.data.sources import DataSet
from backdoor.errors import UserError
from backdoor.experiment.attacker import Crafted, craft
from backdoor.experiment.build import checked
from backdoor.experiment.dashboard import label_of, poisoned_samples
from backdoor.experiment.ddp import launch
from backdoor.experiment.defender import Given, first_state
from backdoor.experiment.evaluator import Evaluator
from backdoor.experiment.monitoring import Curves
from backdoor.experiment.place import Place
from backdoor.experiment.preparation import Preparation
from backdoor.experiment.process import working
from backdoor.experiment.record import Record
from backdoor.loggers.console import closing_table, stage_line
from backdoor.stages import Finished, Pipeline, Step
from backdoor.state import Split, State
from backdoor.store.ranks import world
from backdoor.sweep.interrupts import ending
from backdoor.sweep.reuse import keep
from backdoor.sweep.stage_keys import parts_of
from backdoor.training.context import RunContext
from backdoor.training.observing import observed_by


def run(cfg: DictConfig, place: Place) -> dict[str, Any]:
    """Run the experiment that `cfg` describes, and fill `place.folder`.

    With `trainer.devices` above 1 that many processes run it, and this one waits for them.

    Returns:
        The result, as in result.json.

    Raises:
        UserError: a setting or a file that does not fit; before any training wherever it can be known.
    """
    processes = value_at(cfg, "trainer.devices") or 1
    if processes != 1 and world() == 1:
        check(cfg)
        return launch(cfg, place, processes)
    with working(cfg.threads):
        return recorded(cfg, place)


def recorded(cfg: DictConfig, place: Place) -> dict[str, Any]:
    """`run` in this process: its folder says how it ended, the store keeps its result for later sweeps."""
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    record = Record(place.folder, config)  # type: ignore[arg-type]
    try:
        experiment = Experiment(cfg, record, place.choices)
        result = experiment.run()
    except BaseException as error:
        record.status(**ending(error))
        raise
    try:
        keep(cfg, place.folder, experiment.store)
    except (OSError, UserError) as error:  # the run itself is whole
        experiment.say(f"the result is not kept for later sweeps: {error}")
    closing_table(result, place.folder)
    return result


def follow(cfg: DictConfig, folder: Path) -> None:
    """The same run on a rank other than 0: what it leaves in `folder` is thrown away.

    Raises:
        UserError: as `run`.
    """
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    with open_dict(cfg):
        cfg.logger = {"_target_": "backdoor.loggers.base.Loggers"}  # none
    with working(cfg.threads):
        Experiment(cfg, Record(folder, config)).run()  # type: ignore[arg-type]


def check(cfg: DictConfig, *, here: bool = True) -> None:
    """Refuse a config whose run would fail before it reads any data; leaves no trace.

    What only the data tell stays in the run itself: whether the rows suffice for `attack.ratio` and `reserved`, and,
    for data whose classes or image size are not known by their config (data=folder, data=arrays), whether the target,
    the trigger and the model fit. So does what lies on disk: the images, checkpoints, a folder that is full.

    Args:
        cfg: a job's composed config.
        here: whether it will run on this machine, so that its device must be there.

    Raises:
        UserError: the same that `run` raises.
    """
    checked(cfg, here=here)


class Experiment(Preparation):
    """One run, and what it records.

    Args:
        choices: as in `Place`.
    """

    def __init__(self, cfg: DictConfig, record: Record, choices: Mapping[str, str | None] | None = None) -> None:
        super().__init__(cfg)
        self.record, self.choices = record, choices or {}
        parts = parts_of(cfg)
        crafted = {part.name: part.mark for part in parts if part.group != "defense"}
        trained = {part.name: part.mark for part in parts if part.group != "attack"}
        self.crafting = [replace(step, mark=crafted.get(step.name)) for step in self.crafting]
        self.steps = [replace(step, mark=trained.get(step.name)) for step in self.steps]

    def run(self) -> dict[str, Any]:
        """The straight line."""
        data = self.load()
        self.record.about(data)
        context = self.context(data)
        self.logger.start(self.record.config, self.record.folder, label_of(self.cfg, self.choices))
        result: dict[str, Any] = {}
        curves = Curves(self.store.root, on_row=self.log, on_stage=self.stage_began, say=self.say)
        try:
            with observed_by(curves):
                result = self.measured(data, context, curves)
        finally:
            self.logger.finish(result, self.record.figures)
        return result

    def measured(self, data: DataSet, context: RunContext, curves: Curves) -> dict[str, Any]:
        """The line itself, while `curves` listens; the attacker's own stages have no test set to be measured on yet."""
        poisoned, reserved, crafted = self.poison(data, context)
        evaluator = Evaluator(
            poisoned.truth,
            monitor_images=self.cfg.trainer.monitor_images,
            precision=self.hardware.precision,
            channels_last=self.hardware.channels_last,
        )
        if self.cfg.trainer.monitor_images:
            curves.watch(evaluator.monitor, evaluator.watched())
        self.logger.samples(poisoned_samples(poisoned, data))
        state, keys = first_state(poisoned, reserved, crafted, data, context)
        self.record.draw(poisoned, poisoned.truth.test_clean, data)
        pipeline = Pipeline(self.store, context, keys=keys, common=self.common(data))
        self.run_stages(pipeline, state, crafted, Measuring(self, evaluator, curves))
        return self.record.finish()

    def poison(self, data: DataSet, context: RunContext) -> tuple[Poisoned, Split | None, Crafted]:
        """The attacked data, the trusted rows that were set aside before, and what the attacker made first."""
        train, test, reserved = self.splits(data)
        crafted = craft(self.crafting, train, data, self.store, context, self.common(data))
        means = Means(self.cfg.seed, self.store.root, crafted.findings, self.hardware.device)
        poisoned = self.attack.prepare(data, train, test, means)
        self.record.crafted(crafted.steps, poisoned.tensors)
        if poisoned.plan is not None:
            poisoned.plan.save(self.record.folder / "plan.npz", (data.train.digest, data.test.digest))
            rows = int(poisoned.truth.poisoned.sum()) if poisoned.truth.poisoned is not None else 0
            self.say(f"{data.name}: {len(poisoned.train):,} train images, {rows:,} poisoned by {self.attack.name}")
        return poisoned, reserved, crafted

    def run_stages(self, pipeline: Pipeline, state: State, crafted: Crafted, measuring: Measuring) -> None:
        """Victim and defense, each stage measured as it ends; a model that is there already is the victim."""
        steps = self.steps
        if state.model is not None:
            given = Finished(Step("victim", Given(), None), state, state, key="", hit=False, seconds=0.0)
            measuring(crafted.victim or given)
            steps = [step for step in steps if step.name != "victim"]
        pipeline.run(state, steps, measuring)

    def stage_began(self, name: str) -> None:
        """The run's folder says how far it is."""
        self.record.status("running", stage=name)

    def log(self, row: dict[str, Any]) -> None:
        """A row of the logs, and how far the run is."""
        self.logger.log(row)
        self.record.status("running", stage=row["stage"], epoch=row["epoch"])


class Measuring:
    """Called with each stage as it ends: evaluation, then the record, the figures and a line on the screen."""

    def __init__(self, experiment: Experiment, evaluator: Evaluator, curves: Curves) -> None:
        self.record, self.logger, self.store = experiment.record, experiment.logger, experiment.store
        self.evaluator, self.curves = evaluator, curves

    def __call__(self, finished: Finished) -> None:
        if finished.step.name == "victim" and "_target_" in (finished.step.config or {}):
            self.record.victim = "hit" if finished.hit else "trained"
            self.record.status("running")
        finished = self.curves.completed(finished)
        for row in finished.history if finished.hit else ():
            self.logger.log(row)
        entry = self.evaluator.stage(finished)
        self.record.stage(finished, entry, self.store, finished.key)
        self.record.draw_scores(finished, self.evaluator.truth.poisoned)
        self.record.figures += finished.step.stage.figures(
            finished.state, self.record.folder / "figures", finished.step.name, entry
        )
        stage_line(finished.step.name, entry, finished.seconds, note="from the store" if finished.hit else "")
