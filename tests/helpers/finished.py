"""What the tests of `attack.run` share: a finished run, and copies of it that somebody wrote to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from backdoor.attacks import Poisoned
from backdoor.configs.adopt import run_words
from backdoor.configs.command import check_job, read_command
from backdoor.errors import UserError
from backdoor.experiment.record import Record
from backdoor.experiment.run import Experiment
from backdoor.state import Split
from helpers.run import in_process


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose settings are not the defaults, with a victim that has learnt something."""
    folder = tmp_path_factory.mktemp("finished")
    words = ("model=small_cnn", "model.width=8", "trainer.monitor_images=0", "threads=1", "attack.target=4")
    more = ("data.limit.train=700", "data.image_size=16", "seed=3", "reserved=0.1", "victim.epochs=3", "defense=none")
    status, said = in_process(folder / "cache", *words, *more, f"hydra.run.dir={folder / 'run'}")
    assert status == 0, said
    return folder / "run"


def prepared(cache: Path, folder: Path, *words: str) -> tuple[Poisoned, Split | None]:
    """What a job's attack hands on."""
    cfg = check_job(read_command([*words, *run_words(words), f"store.dir={cache}"])).cfg
    job = Experiment(cfg, Record(folder, OmegaConf.to_container(cfg, resolve=True)))
    data = job.load()
    return job.poison(data, job.context(data))[:2]


class NoAliases(yaml.SafeDumper):
    """Writes what is in two places twice, as a run does."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def changed(source: Path, folder: Path, change: Callable[[dict], None]) -> Path:
    """A copy of a run whose config.yaml somebody wrote to."""
    shutil.copytree(source, folder)
    run = yaml.safe_load((folder / "config.yaml").read_text())
    change(run)
    (folder / "config.yaml").write_text(yaml.dump(run, Dumper=NoAliases))
    return folder


def refusal(folder: Path, *words: str) -> str:
    """The line that a job on that folder is refused with."""
    given = ["attack=external", f"attack.run={folder}", "defense=ft", *words]
    with pytest.raises(UserError) as caught:
        check_job(read_command([*given, *run_words(given)]))
    assert "\n" not in str(caught.value)
    return str(caught.value)
