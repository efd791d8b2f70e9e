"""The steps that defenses are made of."""

from backdoor.stages.base import Draws, Outcome, Stage, Tries
from backdoor.stages.fit import Fit
from backdoor.stages.mark import Mark
from backdoor.stages.network import Preprocesses
from backdoor.stages.pipeline import Finished, Pipeline, Step, check_chain, check_trusted

__all__ = [
    "Draws",
    "Finished",
    "Fit",
    "Mark",
    "Outcome",
    "Pipeline",
    "Preprocesses",
    "Stage",
    "Step",
    "Tries",
    "check_chain",
    "check_trusted",
]
