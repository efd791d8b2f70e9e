"""What a job trains, told from its config alone: for plans, which read no data and import no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from backdoor.store.source import source_digest
from backdoor.store.store import fingerprint
from backdoor.sweep.reuse import Stamp, settled, stamp

# What every stage depends on, besides the attack and what ran before it.
SHARED = ("data", "model", "seed", "reserved", "trainer", "threads")


@dataclass(frozen=True)
class Part:
    """One stage that a job trains or takes from the store.

    Attributes:
        group: attack, victim or defense.
        name: the stage's.
        key: the same for jobs that share the stage. Two keys may turn out to be one artifact (a stage that looks at
            less than all that ran before it), never one key two.
        like: the same for stages that take about as long: whatever the seed and the attack.
    """

    group: str
    name: str
    key: str
    like: str

    @property
    def mark(self) -> dict[str, str]:
        """What is kept beside the artifact."""
        return {"key": self.key, "like": self.like}


def parts_of(cfg: DictConfig, stamp: Stamp = stamp) -> list[Part]:
    """The stages of a job, in the order in which they run."""
    config = settled(cfg, stamp)
    base = {name: config.get(name) for name in SHARED}
    attack, found = config["attack"], list[Part]()
    for name, stage in enabled(attack.get("stages")).items():
        group = "victim" if name == "victim" else "attack"
        chain = [found[-1].key if found else None, name, stage]
        before = [base, attack] if group == "victim" else [base, chain]
        found.append(part(group, name, before, stage, config))
    given = attack.get("model") is not None or attack.get("run") is not None
    trained = not given and "_target_" in config["victim"] and config["victim"].get("enabled", True)
    if trained and all(one.group != "victim" for one in found):
        found.append(part("victim", "victim", [base, attack, config["victim"]], config["victim"], config))
    chain = [base, attack, config["victim"]]
    for name, stage in enabled(config["defense"].get("stages")).items():
        found.append(part("defense", name, [*chain, stage], stage, config))
        if not stage.get("control", False):
            chain = [*chain, stage]
    return found


def part(group: str, name: str, inputs: Any, stage: Any, config: Mapping[str, Any]) -> Part:
    """One part; `inputs`: all that its outcome depends on, as far as a config and the source that it names tell."""
    data, trainer = config["data"], config["trainer"]
    like = [group, without_seed(stage), config["model"], data.get("name"), data.get("limit"), data.get("image_size")]
    caps = [trainer[key] for key in ("device", "precision", "max_epochs", "max_batches", "devices") if key in trainer]
    key = fingerprint([group, name, inputs, source_digest(inputs)])
    return Part(group, name, key, fingerprint([like, caps]))


def enabled(stages: Mapping[str, Any] | None) -> dict[str, Any]:
    """The stages that run."""
    return {name: stage for name, stage in (stages or {}).items() if stage.get("enabled", True)}


def without_seed(value: Any) -> Any:
    """A plain config without its seeds and without the poisoning that its module is told of."""
    if isinstance(value, dict):
        return {key: without_seed(one) for key, one in value.items() if key not in ("seed", "poison", "noise")}
    return [without_seed(one) for one in value] if isinstance(value, list) else value
