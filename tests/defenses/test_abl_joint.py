"""ABL's joint stage on a real backdoor: the ceiling keeps the model; without it, it is destroyed, which is said."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml

from backdoor.defenses.abl import JointAscent
from backdoor.stages import Fit
from backdoor.stages.collapse import collapse
from backdoor.state import State
from helpers.backdoor import context, poisoned_digits, rates, victim

CONF = Path(__file__).parents[2] / "conf" / "defense" / "abl" / "joint.yaml"


def test_the_ceiling_keeps_the_model_that_the_papers_form_destroys(tmp_path):
    state, test = poisoned_digits()
    isolated = torch.zeros(len(state.train), dtype=torch.bool)
    isolated[:200:10] = True  # a third of the poisoned rows; the others stay among those that are trained on
    state = replace(state, model=victim(state), groups={"suspect": isolated})
    assert rates(state.model, test)[1] > 0.9

    def joint(ceiling: float | None) -> tuple[Fit, State]:
        module = partial(JointAscent, lr=0.01, ceiling=ceiling)
        stage = Fit(module=module, model="current", epochs=4, batch_size=32, requires=["suspect"])
        return stage, stage.run(state, context(), name="joint", work=tmp_path).state

    stage, kept = joint(yaml.safe_load(CONF.read_text())["module"]["ceiling"])
    clean, attacked = rates(kept.model, test)
    assert clean > 0.7
    assert attacked < 0.1
    assert collapse(stage, state, kept, context()) is None
    stage, destroyed = joint(None)
    assert rates(destroyed.model, test)[0] < 0.2
    found = collapse(stage, state, destroyed, context())
    assert found is not None
    assert found["after"] < found["guess"] + 0.05 < found["before"]
