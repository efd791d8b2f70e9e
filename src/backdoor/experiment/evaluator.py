"""The evaluator: the only part that sees the truth. It measures models and findings, and hands nothing back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backdoor.metrics import (
    attack_success,
    clean_accuracy,
    defense_effectiveness_rating,
    detection_metrics,
    worst_asr,
)
from backdoor.stages import Finished
from backdoor.state import AttackSet, Split, Truth
from backdoor.store.digest import tensor_digest
from backdoor.store.store import fingerprint
from backdoor.training.inference import predict


class Evaluator:
    """Measures C-Acc, ASR, R-Acc, DER, and how well poisoned rows were found.

    Args:
        truth: test sets, and poisoned rows if known.
        monitor_images: test images of each kind (a fixed, seeded choice) for per-epoch curves.
        batch_size: of a forward pass; None = what suits the device.
    """

    def __init__(
        self,
        truth: Truth,
        *,
        monitor_images: int,
        precision: str,
        channels_last: bool,
        batch_size: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.truth, self.precision, self.channels_last = truth, precision, channels_last
        self.few = sampled(truth, monitor_images)
        self.before: dict[str, float] | None = None

    def metrics(self, model: nn.Module, truth: Truth | None = None, *, precision: str = "fp32") -> dict[str, float]:
        """`c_acc`, `c_acc_non_target`, `asr`, `r_acc` as fractions; what cannot be known is absent.

        With several attack sets also `asr/NAME` and `r_acc/NAME` of each but the first, and `asr_worst` of all.
        """
        truth = truth or self.truth

        def classes(split: Split) -> Tensor:
            layout = self.channels_last
            return predict(model, split, precision=precision, channels_last=layout, batch_size=self.batch_size)

        found = clean_accuracy(classes(truth.test_clean), truth.test_clean.labels, truth.targets)
        for place, (name, attack) in enumerate(truth.attacks.items()):
            rates = attack_success(classes(attack.split), attack.split.labels, attack.goal)
            found |= {f"{metric}/{name}" if place else metric: value for metric, value in rates.items()}
        worst = worst_asr(found)
        return found | ({"asr_worst": worst} if worst is not None and len(truth.attacks) > 1 else {})

    def monitor(self, model: nn.Module) -> dict[str, float]:
        """The same on few images, in the training's precision: for curves, not for conclusions."""
        return self.metrics(model, self.few, precision=self.precision)

    def watched(self) -> str:
        """Digest of the few test images that `monitor` looks at, and of how it looks at them."""
        goals = {name: attack.goal.kind for name, attack in self.few.attacks.items()}
        return fingerprint([tensor_digest(*tensors_of(self.few)), goals, self.precision, self.channels_last])

    def stage(self, finished: Finished) -> dict[str, Any]:
        """The record of one stage: metrics, DER against the first model measured, detection, findings, seconds.

        DER counts the strongest trigger before and after: a defense has not removed what still works.
        """
        entry: dict[str, Any] = {"name": finished.step.name}
        provides = finished.step.stage.provides
        if "model" in provides and finished.state.model is not None:
            entry |= self.metrics(finished.state.model)
            if self.before is None:
                self.before = dict(entry)
            elif "asr" in entry and "asr" in self.before:
                (c_before, before), (c_after, after) = (
                    (seen["c_acc"], seen.get("asr_worst", seen["asr"])) for seen in (self.before, entry)
                )
                entry["der"] = defense_effectiveness_rating(c_before, before, c_after, after)
        detection = self.detection(finished)
        if detection:
            entry["detection"] = detection
        if len(self.few.test_clean):
            tried = [self.monitor(model) for model in finished.step.stage.tried(finished.before, finished.state)]
            entry |= {"tried": tried} if tried else {}
        if finished.numbers():
            entry["findings"] = finished.numbers()
        if finished.collapse is not None:
            entry["collapsed"] = True
        entry["seconds"] = round(finished.seconds, 2)
        entry["stored"] = finished.hit
        if finished.stored_with:
            entry["stored_with"] = dict(finished.stored_with)
        if finished.step.stage.control:
            entry["control"] = True
        return entry

    def detection(self, finished: Finished) -> dict[str, Any]:
        """Precision, recall, AUROC, ... of what this stage flagged or scored; counts alone if the truth is unknown."""
        provides, state = finished.step.stage.provides, finished.state
        flagged = state.groups["suspect"] if "suspect" in provides else None
        scored = [name for name in state.scores if name in provides]
        scores = state.scores[scored[-1]] if scored else None
        if flagged is None and scores is None:
            return {}
        if self.truth.poisoned is None:
            return {} if flagged is None else {"flagged": int(flagged.sum())}
        return detection_metrics(flagged, scores, self.truth.poisoned)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a truth, whatever it is made of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_of(one)
    elif is_dataclass(value):
        for part in fields(value):
            yield from tensors_of(getattr(value, part.name))


def sampled(truth: Truth, count: int) -> Truth:
    """At most `count` rows of each test set; the same ones each time."""
    generator = torch.Generator().manual_seed(0)

    def some(total: int) -> Tensor:
        return torch.randperm(total, generator=generator)[:count].sort().values

    clean = truth.test_clean.take(some(len(truth.test_clean)))
    attacks = {
        name: AttackSet(attack.split.take(some(len(attack.split))), attack.goal)
        for name, attack in truth.attacks.items()
    }
    return Truth(clean, attacks, targets=truth.targets)
