"""What a sweep's words mean: which results are the same, which jobs there are, and in which order."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from omegaconf import OmegaConf

from backdoor.configs.command import check_job, read_command
from backdoor.configs.composer import Composer
from backdoor.configs.listing import groups
from backdoor.configs.places import conf_dir
from backdoor.errors import UserError
from backdoor.sweep.folders import check_folders, claim
from backdoor.sweep.jobs import all_words, victims_first
from backdoor.sweep.reuse import find, result_key, stamp
from backdoor.sweep.runner import launch


def config(*words: str) -> Any:
    return check_job(read_command(words)).cfg


def test_a_result_is_told_by_what_can_change_it(tmp_path, monkeypatch):
    same = (
        "store.dir=x",
        "progress=false",
        "logger=wandb_offline",
        "force=true",
        "trainer.checkpoint_s=1",
        "objective=asr",
    )
    other = ("seed=1", "attack.ratio=0.2", "threads=2", "reserved=0.1", "defense=none", "trainer=debug")
    key = result_key(config())
    assert {result_key(config(word)) for word in same} == {key}
    assert len({key, *(result_key(config(word)) for word in other)}) == 1 + len(other)
    monkeypatch.setattr("backdoor.sweep.reuse.__version__", "99")
    assert result_key(config()) != key


def test_files_count_by_what_they_are_and_not_by_where(tmp_path):
    (tmp_path / "one" / "train").mkdir(parents=True)
    (tmp_path / "one" / "train" / "a.png").write_bytes(b"12")
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # with its times
    cfgs = [config("data=folder", f"data.root={tmp_path / name}") for name in ("one", "two")]
    assert result_key(cfgs[0]) == result_key(cfgs[1])
    (tmp_path / "two" / "train" / "a.png").write_bytes(b"123")
    assert result_key(cfgs[0]) != result_key(cfgs[1])
    assert stamp(str(tmp_path / "nothing")) == str(tmp_path / "nothing")


def test_looking_leaves_no_trace(tmp_path):
    assert find(config(f"store.dir={tmp_path / 'cache'}")) is None
    assert list(tmp_path.iterdir()) == []


def test_jobs_with_one_victim_are_spread():
    order = victims_first([(f"attack={a}", f"defense={d}") for a in "xyz" for d in "pq"])
    assert [words[0][-1] for words in order] == list("xyzxyz")
    assert victims_first([("seed=1", "~defense.stages.x"), ("seed=1",)]) == [
        ("seed=1", "~defense.stages.x"),
        ("seed=1",),
    ]


def test_composed_together_is_composed_alone():
    words = ("attack=badnets,wanet", "attack.ratio=0.1,0.2", "defense=abl", "model.depth=22", "+extra=1", "seed=2")
    command = read_command(["-m", *words])
    composer = Composer(command)
    for job in all_words(command):
        whole, alone = composer.compose(job), command.compose(job)
        assert OmegaConf.to_container(whole.hydra.overrides) == OmegaConf.to_container(alone.hydra.overrides)
        del whole.hydra, alone.hydra
        assert whole == alone
    with pytest.raises(Exception, match="ratoi"):
        composer.compose(["attack=badnets", "attack.ratoi=0.1"])


def test_the_grids_are_what_they_say_and_an_override_cuts_an_axis():
    assert len(all_words(read_command(["-m", "experiment=backdoorbench"]))) == 8 * 10 * 5 * 5 * 4
    cut = all_words(read_command(["-m", "experiment=backdoorbench", "data=gtsrb", "defense=abl,ft", "seed=0,1"]))
    assert len(cut) == 8 * 2 * 5 * 5 * 2
    grid = all_words(read_command(["-m", "experiment=smoke_grid"]))
    assert len(grid) == 24
    assert len({tuple(word for word in job if not word.startswith("defense")) for job in grid[:4]}) == 4


def test_glob_stands_for_the_choices_that_fit(tmp_path):
    choices = groups(conf_dir())
    found = all_words(read_command(["-m", "attack=glob([badnets*,sig],exclude=*all2all)", "seed=1"]))
    assert found == [("attack=badnets", "seed=1"), ("attack=sig", "seed=1")]
    (tmp_path / "experiment").mkdir()
    study = "# @package _global_\nhydra: {sweeper: {params: {model: glob(*)}}}\n"
    (tmp_path / "experiment" / "study.yaml").write_text(study)
    found = all_words(read_command(["-m", "experiment=study", "--config-dir", str(tmp_path)]))
    assert found == [
        (f"model={name}", "experiment=study") for name in choices["model"]
    ]  # as `backdoor.list` has them: no parts of choices
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "zzz.yaml").write_text("ratio: 0.1\n")
    assert all_words(read_command(["-m", "attack=glob(z*)", "--config-dir", str(tmp_path)])) == [("attack=zzz",)]


REFUSED = {
    "attack.ratio=interval(0.3,0.4)": "hydra/sweeper=basic runs every value of a list, and this is none",
    "seed=glob(*)": "expected a choice of that group that fits, found none",
    "attack=glob(zz*)": "expected a choice of that group that fits, found none",
    "seed=range(3,3)": "expected 1 to 100,000 values, found none",
    "seed=range(0,5,0)": "must not be zero",
    "seed=range(0,1000000000)": "found more",
    "attack.ratio=range(0.0,1e9,0.1)": "found more",
    "hydra.verbose=true,false": "Hydra's own settings are the sweep's and not a job's",
    "hydra.sweeper.max_batch_size=0": "expected a whole number of at least 1",
    "hydra.sweeper.params={seed:null}": "hydra.sweeper.params={seed:null}: Hydra cannot take it",
    "+hydra.sweeper.params.seed='1,2'": "+hydra.sweeper.params.seed='1,2': Hydra cannot take it (Unexpected type",
    "hydra.sweeper=null": "hydra.sweeper=None: expected a plugin of Hydra's; choose one with hydra/sweeper=NAME",
    "hydra.sweeper._target_=os.system": "hydra.sweeper._target_=os.system: expected a plugin",
    "hydra.launcher=5": "hydra.launcher=5: expected a plugin of Hydra's; choose one with hydra/launcher=NAME",
    "hydra.launcher._target_=os.system": "hydra.launcher._target_=os.system: expected a plugin",
    "hydra/launcher=null": "hydra/launcher=null: Hydra cannot take it",
    "+hydra.callbacks.x=1": "+hydra.callbacks.x=1: Cannot instantiate config of type int.",
    "+hydra.callbacks.x._target_=os.system": "hydra.callbacks.x: Target 'os.system' is blocklisted",
    "hydra.sweep.dir=": "expected a folder to write into",
    "hydra.sweep.dir=file": "expected a writable folder, got: File exists",
    "hydra.sweep.dir=file/below": "expected a writable folder, got: Not a directory",
    "hydra.sweep.subdir=same": "jobs 0 and 1 would both write into",
    "hydra.sweep.subdir=../../up": "job 0 would write into",
    "data.name=../../x": "folders and files are named by it",
    "attack.name=..": "folders and files are named by it",
    "+defense.stages={a/b:{_target_:x}}": "folders and files are named by it",
}


@pytest.mark.parametrize("word", REFUSED)
def test_no_word_of_a_sweep_is_ignored_or_leads_elsewhere(command, tmp_path, word):
    """Refused in one line before anything runs, and nothing is written beside the sweep's folder."""
    (tmp_path / "file").touch()
    place = () if word.startswith("hydra.sweep.dir") else ("hydra.sweep.dir=sweep",)
    status, _, errors = command("-m", "threads=1", "trainer=debug", "defense=none", "seed=1,2", *place, word)
    assert (status, len(errors.splitlines())) == (2, 1), errors
    assert REFUSED[word] in errors
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "sweep"}
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name != "sweep"]


@pytest.mark.parametrize("word", ["hydra=null", "hydra.sweeper.params={seed:1}", "hydra.verbose=5"])
def test_nor_does_a_word_that_hydra_cannot_take_end_a_single_run_with_a_traceback(command, tmp_path, word):
    status, _, errors = command("threads=1", "trainer=debug", "defense=none", word)
    assert (status, len(errors.splitlines())) == (2, 1), errors
    assert errors.startswith(f"error: {word}: Hydra cannot take it (")


@pytest.mark.parametrize("word", ["data.name=../../x", "attack.name=a/b", "defense.name='.'", "data.name='a\nb'"])
def test_nor_does_a_name_of_a_single_run(command, tmp_path, word):
    status, _, errors = command("threads=1", "trainer=debug", word)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "folders and files are named by it; expected a name without /" in errors
    assert not list(tmp_path.iterdir())


def test_jobs_have_folders_of_their_own(tmp_path):
    check_folders(tmp_path, {0: tmp_path / "a", 1: tmp_path / "b" / "c", 2: None, 3: tmp_path / "b" / "d"})
    for folders in (("a", "x/../a"), ("a", "a/b"), ("a/b/c", "a"), (".",), ("../b",), (str(tmp_path) + "x",)):
        with pytest.raises(UserError, match=r"^hydra\.sweep\.subdir: job"):
            check_folders(tmp_path, {number: tmp_path / name for number, name in enumerate(folders)})
    claim(tmp_path, 0, tmp_path / "a")
    claim(tmp_path, 0, tmp_path / "a")  # a job that Slurm starts again
    with pytest.raises(UserError, match="jobs 0 and 1 would both write"):
        claim(tmp_path, 1, tmp_path / "b" / ".." / "a")


def test_a_launcher_gets_no_more_than_max_batch_size():
    class Launcher:
        def launch(self, jobs: Any, initial_job_idx: int) -> Any:
            return [(initial_job_idx + at, *job) for at, job in enumerate(jobs)] + [len(jobs)]

    jobs = [["a"], ["b"], ["c"]]
    assert list(launch(Launcher(), jobs, 5, 2)) == [(5, "a"), (6, "b"), 2, (7, "c"), 1]
    assert list(launch(Launcher(), jobs, 0, None)) == [(0, "a"), (1, "b"), (2, "c"), 3]
    assert list(launch(Launcher(), [], 0, None)) == []
