"""What a run and a preview have in common: the parts that a config makes, up to what the attacker makes first."""

from __future__ import annotations

from functools import partial
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from backdoor.configs.class_names import check_classes
from backdoor.data.reserve import split_reserved
from backdoor.data.sources import DataSet, Source
from backdoor.experiment.build import assemble, hardware_of, model_facts
from backdoor.stages import check_trusted
from backdoor.state import Split
from backdoor.store.store import Store, store_root
from backdoor.training.context import RunContext


class Preparation:
    """The parts of one job, made from its config.

    Args:
        source: the data, in the place of those that the config names.

    Raises:
        UserError: a setting that does not fit, as far as it can be known before the data are read.
    """

    def __init__(self, cfg: DictConfig, source: Source | None = None) -> None:
        pieces = assemble(cfg, source=source)
        self.cfg, self.hardware = cfg, hardware_of(cfg)
        self.source, self.attack, self.logger = pieces.source, pieces.attack, pieces.logger
        self.steps, self.crafting = pieces.steps, pieces.crafting
        self.store = Store(store_root(cfg.store.dir), self.say)

    @staticmethod  # stages are handed it, and must not get from it to the rest of this object
    def say(line: str) -> None:
        """One line on the screen."""
        print(line, flush=True)

    def load(self) -> DataSet:
        """The images, decoded or from the store."""
        return self.source.load(self.store.root, progress=bool(self.cfg.progress))

    def splits(self, data: DataSet) -> tuple[Split, Split, Split | None]:
        """The clean train set, the clean test set, and the trusted rows that are set aside of the former, if any.

        Raises:
            UserError: a class, a trigger, a ratio or too few trusted rows; before the attacker trains anything.
        """
        train, test = data.train.open(), data.test.open()
        reserved = None
        if self.cfg.reserved:
            kept, trusted = split_reserved(train, self.cfg.reserved, self.cfg.seed)
            check_trusted(self.steps, self.cfg.reserved, len(trusted))
            train, reserved = train.take(kept), train.take(trusted)
        check_classes(self.cfg.attack, data.classes)
        self.attack.check(data.num_classes, data.shape, train.labels)
        return train, test, reserved

    def context(self, data: DataSet) -> RunContext:
        """What stages may use."""
        cfg, trainer = self.cfg, self.cfg.trainer
        # A copy: a node of the config leads to its parents, and so to the attack.
        plain = OmegaConf.create(OmegaConf.to_container(cfg.model, resolve=True))
        return RunContext(
            seed=cfg.seed,
            hardware=self.hardware,
            new_model=partial(instantiate, plain, **model_facts(data), _convert_="all"),
            max_epochs=trainer.max_epochs,
            max_batches=trainer.max_batches,
            checkpoint_s=trainer.checkpoint_s,
            progress=bool(cfg.progress),
            say=self.say,
        )

    def common(self, data: DataSet) -> dict[str, Any]:
        """What is in the key of every artifact of this job."""
        return {
            "seed": self.cfg.seed,
            "model": [OmegaConf.to_container(self.cfg.model, resolve=True), model_facts(data)],
            "hardware": self.hardware.key(),
            "caps": [self.cfg.trainer.max_epochs, self.cfg.trainer.max_batches],
        }
