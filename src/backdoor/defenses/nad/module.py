"""NAD's training: cross-entropy, and the teacher's attention."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.checking.ranges import NotNegative, Positive
from backdoor.data.loader import Batch
from backdoor.defenses.nad.method import attention_layers, captured, distillation_loss
from backdoor.errors import UserError
from backdoor.training import StageModule


class AttentionDistillation(StageModule):
    """The student starts from the victim and learns to look where the fine-tuned teacher looks.

    Args:
        betas: weight of each layer's distance, from the largest resolution to the smallest; as many layers are
            compared. A model with fewer resolutions uses the last ones.
        power: p of the attention map; 2 in the paper.
        teacher: name of the finding that holds the teacher's weights.
    """

    def __init__(
        self,
        *,
        betas: Sequence[NotNegative] = (500, 1000, 1000),
        power: Positive = 2.0,
        teacher: str = "teacher",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not betas or any(not isinstance(beta, int | float) or beta < 0 for beta in betas):
            raise UserError(
                f"betas={list(betas)}: expected a number of at least 0 for each layer, as [500, 1000, 1000]"
            )
        if not isinstance(power, int | float) or power <= 0:
            raise UserError(f"power={power}: expected a number above 0, for instance 2")
        self.betas, self.power = list(betas), power
        guide = copy.deepcopy(self.model)
        guide.load_state_dict(self.state.findings[teacher])
        self.guide: list[nn.Module] = [guide.eval().requires_grad_(False)]  # a list: Lightning leaves its mode alone
        self.layers: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy plus the distance of the attention maps, a scalar."""
        teacher = self.guide[0]
        if not self.layers:
            self.layers = attention_layers(teacher, batch.images[:1], len(self.betas))
        with captured(teacher, self.layers) as theirs, torch.no_grad():
            teacher(batch.images)
        with captured(self.model, self.layers) as mine:
            logits = self(batch.images)
        distance = distillation_loss(
            [mine[name] for name in self.layers],
            [theirs[name] for name in self.layers],
            self.betas[-len(self.layers) :],
            self.power,
        )
        loss = F.cross_entropy(logits, batch.labels) + distance
        self.log_batch(loss, logits, batch)
        return loss
