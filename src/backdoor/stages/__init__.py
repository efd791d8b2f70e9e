"""The steps that defenses are made of."""

from backdoor.stages.base import Outcome, Stage
from backdoor.stages.fit import Fit
from backdoor.stages.mark import Mark
from backdoor.stages.pipeline import Finished, Pipeline, Step, check_chain, check_trusted

__all__ = [
    "Finished",
    "Fit",
    "Mark",
    "Outcome",
    "Pipeline",
    "Stage",
    "Step",
    "check_chain",
    "check_trusted",
]
