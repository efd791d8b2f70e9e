"""`bd.run` and `bd.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backdoor.configs.in_process import compose_job, told
from backdoor.experiment.place import Place
from backdoor.experiment.reopen import Run


def run(*words: str, **settings: Any) -> Run:
    """Run one job, as `python -m backdoor WORDS` does, in this process; what it prints is the same.

    It leaves this process as it was: torch's threads, warnings, log levels and Hydra's globals are put back. What stays
    is what torch itself keeps, such as a CUDA context.

    Args:
        words: as in the shell: `"attack=badnets"`, `"defense.stages.unlearn.epochs=7"`, `"--config-dir=DIR"`.
        settings: the same as keywords: `seed=1`, `model="resnet18"`, `**{"attack.ratio": 0.05}`.

    Returns:
        The finished run.

    Raises:
        UserError: a word, a value or a file that does not fit; the message is the line that the shell shows.
    """
    job = compose_job(words, settings)
    from backdoor.experiment.run import run as run_job

    try:
        run_job(job.cfg, Place(job.folder, job.choices))
    except Exception as error:
        raise told(error) from error
    return Run(job.folder)


def load(folder: str | Path, *words: str) -> Run:
    """A finished run, opened; its folder may be a stranger's.

    Args:
        folder: what the run printed at its end.
        words: where its images lie on this machine, if elsewhere: `"data.root=PATH"`.

    Raises:
        UserError: no folder of a finished run.
    """
    return Run(folder, words)
