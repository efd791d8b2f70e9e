"""What a sweep's words mean: which results are the same, which jobs there are, and in which order."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from omegaconf import OmegaConf

from backdoor.cli_check import check_job, read_command
from backdoor.composing import Composer
from backdoor.results import find, result_key, stamp
from backdoor.sweep import all_words, victims_first


def config(*words: str) -> Any:
    return check_job(read_command(words)).cfg


def test_a_result_is_told_by_what_can_change_it(tmp_path, monkeypatch):
    same = ("store.dir=x", "progress=false", "logger=wandb_offline", "force=true", "trainer.checkpoint_s=1")
    other = ("seed=1", "attack.ratio=0.2", "threads=2", "reserved=0.1", "defense=none", "trainer=debug")
    key = result_key(config())
    assert {result_key(config(word)) for word in same} == {key}
    assert len({key, *(result_key(config(word)) for word in other)}) == 1 + len(other)
    monkeypatch.setattr("backdoor.results.__version__", "99")
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
