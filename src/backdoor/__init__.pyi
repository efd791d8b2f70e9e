from backdoor import models as models
from backdoor import triggers as triggers
from backdoor.api.evaluating import evaluate as evaluate
from backdoor.api.jobs import load as load
from backdoor.api.jobs import run as run
from backdoor.api.poisoning import poison as poison
from backdoor.errors import UserError as UserError
from backdoor.experiment.datasets import ImageData as ImageData
from backdoor.experiment.datasets import PoisonedData as PoisonedData
from backdoor.experiment.reopen import Run as Run

__version__: str
