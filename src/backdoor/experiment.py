"""One run, a straight line: data -> attack -> victim -> defense -> evaluation -> record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from backdoor.allocator import keep_freed_memory
from backdoor.assembly import Given, model_facts, quieten, steps_of, train_digest
from backdoor.attacks import Poisoned
from backdoor.checkpoint import load_weights
from backdoor.context import Hardware, RunContext
from backdoor.data.reserve import split_reserved
from backdoor.data.sources import DataSet
from backdoor.digest import file_digest, tensor_digest
from backdoor.evaluation import Evaluator
from backdoor.record import Record
from backdoor.report.console import closing_table, stage_line
from backdoor.stages import Finished, Pipeline, Step, check_chain
from backdoor.state import Split, State
from backdoor.store import Store


def run(cfg: DictConfig) -> dict[str, Any]:
    """Run the experiment that `cfg` describes; its folder is `hydra.run.dir`.

    Returns:
        The result, as in result.json.

    Raises:
        UserError: a setting or a file that does not fit; before any training wherever it can be known.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    record = Record(folder, config)  # type: ignore[arg-type]
    try:
        result = Experiment(cfg, record).run()
    except BaseException as error:
        record.status("failed", f"{type(error).__name__}: {error}")
        raise
    closing_table(result, folder)
    return result


class Experiment:
    """The parts of one run, made from its config."""

    def __init__(self, cfg: DictConfig, record: Record) -> None:
        quieten()
        keep_freed_memory()
        self.cfg, self.record = cfg, record
        if cfg.threads is not None:
            torch.set_num_threads(cfg.threads)
        self.hardware = Hardware.of(
            device=cfg.trainer.device,
            precision=cfg.trainer.precision,
            channels_last=cfg.trainer.channels_last,
            compile=cfg.trainer.compile,
        )
        self.steps = [*steps_of({"victim": cfg.victim}), *steps_of(cfg.defense.stages)]
        self.attack = instantiate(cfg.attack, _convert_="all")
        self.logger = instantiate(cfg.logger, _convert_="all")
        self.store = Store(Path(cfg.store.dir or platformdirs.user_cache_dir("backdoor")).expanduser(), self.say)

    def say(self, line: str) -> None:
        """One line on the screen."""
        print(line, flush=True)

    def run(self) -> dict[str, Any]:
        """The straight line."""
        data: DataSet = instantiate(self.cfg.data, _convert_="all").load(
            self.store.root, progress=bool(self.cfg.progress)
        )
        poisoned, reserved = self.poison(data)
        evaluator = Evaluator(
            poisoned.truth,
            monitor_images=self.cfg.trainer.monitor_images,
            precision=self.hardware.precision,
            channels_last=self.hardware.channels_last,
        )
        context = self.context(data, evaluator)
        state, keys = self.start(poisoned, reserved, data, context)
        check_chain(self.steps, set(keys), f"defense={self.cfg.defense.name}")
        self.record.draw(poisoned, poisoned.truth.test_clean, data)
        self.logger.start(self.record.config, self.record.folder, self.name(), self.cfg.data.name, self.tags())
        result: dict[str, Any] = {}
        try:
            self.run_stages(state, keys, context, evaluator, poisoned, data)
            result = self.record.finish()
        finally:
            self.logger.finish(result, self.record.figures)
        return result

    def poison(self, data: DataSet) -> tuple[Poisoned, Split | None]:
        """The attacked data, and the trusted rows that were set aside before."""
        train, test = data.train.open(), data.test.open()
        reserved = None
        if self.cfg.reserved:
            kept, trusted = split_reserved(train, self.cfg.reserved, self.cfg.seed)
            train, reserved = train.take(kept), train.take(trusted)
        poisoned: Poisoned = self.attack.prepare(data, train, test, seed=self.cfg.seed, cache_dir=self.store.root)
        if poisoned.plan is not None:
            poisoned.plan.save(self.record.folder / "plan.npz")
            rows = int(poisoned.plan.mask().sum())
            self.say(f"{data.name}: {len(poisoned.train):,} train images, {rows:,} poisoned by {self.attack.name}")
        return poisoned, reserved

    def context(self, data: DataSet, evaluator: Evaluator) -> RunContext:
        """What stages may use."""
        cfg, trainer = self.cfg, self.cfg.trainer
        facts = model_facts(data)

        def new_model() -> torch.nn.Module:
            return instantiate(cfg.model, **facts, _convert_="all")

        return RunContext(
            seed=cfg.seed,
            hardware=self.hardware,
            new_model=new_model,
            max_epochs=trainer.max_epochs,
            max_batches=trainer.max_batches,
            checkpoint_s=trainer.checkpoint_s,
            progress=bool(cfg.progress),
            monitor=evaluator.monitor if trainer.monitor_images else None,
            on_epoch=self.logger.log,
            say=self.say,
        )

    def start(
        self, poisoned: Poisoned, reserved: Split | None, data: DataSet, context: RunContext
    ) -> tuple[State, dict[str, str]]:
        """The defender's first state and the digests of what is in it."""
        model, keys = None, {"train": train_digest(poisoned, data)}
        if reserved is not None:
            keys["reserved"] = tensor_digest(reserved.index, reserved.labels)
        if poisoned.checkpoint is not None:
            model = context.make_model()
            load_weights(model, poisoned.checkpoint, setting="attack.model")
            model = context.place(model)
            keys["model"] = file_digest(poisoned.checkpoint)
        groups = {}
        if poisoned.suspect is not None:
            groups["suspect"] = poisoned.suspect
            keys["suspect"] = tensor_digest(poisoned.suspect)
        return State(poisoned.train, data.num_classes, reserved, model, groups=groups), keys

    def run_stages(
        self,
        state: State,
        keys: Mapping[str, str],
        context: RunContext,
        evaluator: Evaluator,
        poisoned: Poisoned,
        data: DataSet,
    ) -> None:
        """Victim and defense, each stage measured as it ends."""
        common = {
            "seed": self.cfg.seed,
            "model": [OmegaConf.to_container(self.cfg.model, resolve=True), model_facts(data)],
            "hardware": self.hardware.key(),
            "caps": [self.cfg.trainer.max_epochs, self.cfg.trainer.max_batches],
        }
        pipeline = Pipeline(self.store, context, keys=keys, common=common)

        def report(finished: Finished) -> None:
            if finished.step.name == "victim" and "_target_" in (finished.step.config or {}):
                self.record.victim = "hit" if finished.hit else "trained"
                self.record.status("running")
            if finished.hit:
                for row in finished.history:
                    self.logger.log(row)
            entry = evaluator.stage(finished)
            self.record.stage(finished, entry, self.store, finished.key)
            self.record.draw_scores(finished, poisoned.truth.poisoned)
            stage_line(finished.step.name, entry, finished.seconds, note="from the store" if finished.hit else "")

        steps = self.steps
        if state.model is not None:
            given = Step("victim", Given(), None)
            report(Finished(given, state, key="", hit=False, seconds=0.0))
            steps = [step for step in steps if step.name != "victim"]
        pipeline.run(state, steps, report)

    def name(self) -> str:
        """The run's name for dashboards."""
        return f"{self.cfg.attack.name}-{self.cfg.defense.name}-{self.cfg.seed}"

    def tags(self) -> list[str]:
        """The run's tags for dashboards."""
        return [self.cfg.attack.name, self.cfg.defense.name, self.cfg.data.name, f"seed {self.cfg.seed}"]
