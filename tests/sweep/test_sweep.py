"""Sweeps: nothing is done twice, victims come first, and one job's failure is that job's alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from backdoor.configs.command import read_command
from backdoor.experiment import run as experiment
from backdoor.sweep.runner import Ended, closing_lines, launch_words
from helpers.command import QUICK, numbers, read_json
from helpers.run import finish, in_process, start

pytestmark = pytest.mark.timeout(600)

JOBS = ("-m", *QUICK, "reserved=0.05", "attack=badnets,blended", "defense=none,ft")
NAMES = ["0-badnets-none", "1-blended-none", "2-badnets-ft", "3-blended-ft"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(store, folder of a finished sweep, what it said)."""
    folder = tmp_path_factory.mktemp("swept")
    status, said = in_process(folder / "cache", *JOBS, f"hydra.sweep.dir={folder / 'sweep'}")
    assert status == 0, said
    return folder / "cache", folder / "sweep", said


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that are really run from here on."""
    real, seen = experiment.run, []

    def run(cfg: Any, place: Any) -> Any:
        seen.append(cfg)
        return real(cfg, place)

    monkeypatch.setattr(experiment, "run", run)
    return seen


def test_each_victim_is_trained_once_and_before_the_defenses(swept):
    cache, sweep, said = swept
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == NAMES
    states = [read_json(sweep / name, "status.json")["victim"] for name in NAMES]
    assert states == ["trained", "trained", "hit", "hit"]
    assert len(list(cache.glob("victim/*/artifact.json"))) == 2
    assert "4 jobs: 4 done" in said
    assert "attack=blended  defense=ft" in said


def files(folder: Path) -> set[str]:
    """What a run's record left, without Hydra's own."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if not name.startswith(".hydra/") and not name.endswith(".log")}


def test_a_finished_sweep_is_not_run_again_and_leaves_whole_folders(swept, runs, tmp_path):
    cache, first, _ = swept
    words = (*JOBS, "logger=wandb_offline", "progress=false", "trainer.checkpoint_s=7")
    status, said = in_process(cache, *words, f"hydra.sweep.dir={tmp_path / 'again'}")
    assert (status, runs) == (0, []), said
    assert "4 jobs: 4 from the store" in said
    for name in NAMES:
        assert files(tmp_path / "again" / name) == files(first / name)
        assert numbers(tmp_path / "again" / name) == numbers(first / name)
        assert read_json(tmp_path / "again" / name, "status.json")["victim"] == "hit"
        config = OmegaConf.load(tmp_path / "again" / name / "config.yaml")
        assert config.trainer.checkpoint_s == 7
        overrides = OmegaConf.load(tmp_path / "again" / name / ".hydra" / "overrides.yaml")
        assert f"attack={name.split('-')[1]}" in overrides


def test_only_what_is_new_runs_in_the_place_that_it_has(swept, runs, tmp_path):
    words = [word.replace("defense=none,ft", "defense=none,ft,ac") for word in JOBS]
    status, said = in_process(swept[0], *words, f"hydra.sweep.dir={tmp_path}")
    assert status == 0, said
    assert [cfg.attack.name for cfg in runs] == ["badnets", "blended"]
    assert read_json(tmp_path / "5-blended-ac")["defense"] == "ac"
    assert "6 jobs: 2 done, 4 from the store" in said


def test_force_runs_again_and_so_does_a_damaged_result(swept, runs, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(swept[0], cache)
    words = [word.replace("defense=none,ft", "defense=none") for word in JOBS]
    status, said = in_process(cache, *words, "force=true", f"hydra.sweep.dir={tmp_path / 'forced'}")
    assert (status, len(runs)) == (0, 2), said
    assert read_json(tmp_path / "forced" / NAMES[0], "status.json")["victim"] == "hit"
    for kept in cache.glob("result/*/result.json"):
        kept.write_text('{"schema": 1, "stages": [')
    status, said = in_process(cache, *words, f"hydra.sweep.dir={tmp_path / 'damaged'}")
    assert (status, len(runs)) == (0, 4), said
    status, said = in_process(cache, *words, f"hydra.sweep.dir={tmp_path / 'mended'}")
    assert (status, len(runs)) == (0, 4), said


def test_a_job_that_others_finished_meanwhile_is_not_run(swept, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("backdoor.cli.main.MAX_CHECKED_JOBS", 1)  # the others look as they start
    status, said = in_process(swept[0], *JOBS, f"hydra.sweep.dir={tmp_path}")
    assert (status, runs) == (0, []), said
    assert "4 jobs: 4 from the store" in said
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir())[0] == NAMES[0]


def test_a_job_that_is_not_composed_before_has_its_own_number(command, tmp_path, monkeypatch):
    monkeypatch.setattr("backdoor.cli.main.MAX_CHECKED_JOBS", 2)
    words = ("-m", *QUICK, "defense=none", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    for seeds in ("1", "1,2,3"):  # the first is in the store then
        status, _, said = command(*words, f"seed={seeds}", cache=tmp_path / "cache")
        assert status == 0, said
    seeds = [read_json(tmp_path / "sweep" / f"{number}-badnets-none")["seed"] for number in range(3)]
    assert seeds == [1, 2, 3]


def test_an_unknown_key_of_a_sweep_is_told(command):
    status, _, said = command("-m", "experiment=smoke_grid", "+hydra.sweeper.params.atack='badnets,sig'")
    assert status == 2
    assert "did you mean 'attack'" in said


def test_a_folder_is_said_to_the_launcher_in_words_that_hydra_reads(tmp_path):
    words = launch_words(["seed=1", "hydra.sweep.dir=x"], tmp_path / "seed=1, it's", tmp_path)
    assert words[0] == "seed=1"
    assert read_command(words).compose(words).hydra.sweep.subdir == "seed=1, it's"


def test_the_closing_table_says_which_failed_and_why():
    ended = [Ended((f"seed={n}", "x=1"), None, "done") for n in range(60)]
    ended[7] = Ended(("seed=7", "x=1"), None, "failed", "seed: bad", mistake=True)
    lines = closing_lines(ended, {0: {"asr": 0.5}})
    assert lines == ["   7  failed          seed=7  seed: bad", "60 jobs: 59 done, 1 failed"]
    assert "ASR  50.0" in closing_lines(ended[:9], {0: {"asr": 0.5}})[0]


JOBLIB = (*JOBS, "hydra/launcher=joblib", "hydra.launcher.workers=2")


def test_joblib_runs_side_by_side_and_a_failing_job_stops_no_other(run_cli, tmp_path):
    words = [word.replace("reserved=0.05", "reserved=0.05,5000") for word in JOBLIB]
    words = [word.replace("defense=none,ft", "defense=none") for word in words]
    done = run_cli(*words, f"hydra.sweep.dir={tmp_path / 'sweep'}", env={"BACKDOOR_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 2, done.stderr
    assert "2 failed" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 2 of 4 jobs failed; the first: reserved")
    states = [read_json(path, "status.json")["state"] for path in sorted((tmp_path / "sweep").glob("?-*"))]
    assert sorted(states) == ["done", "done", "failed", "failed"]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_sweep_goes_on(tmp_path, swept):
    """Its workers end with it, and what they had made is not made again."""
    cache = tmp_path / "cache"
    words = (*JOBLIB, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    process = start(cache, tmp_path, *words)
    while not list(cache.glob("victim/*.part")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    workers = [read_json(path.parent, path.name)["pid"] for path in (tmp_path / "sweep" / ".jobs").glob("[0-9].json")]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert workers
    until = time.monotonic() + 10
    while any(map(is_there, workers)):
        assert time.monotonic() < until
        time.sleep(0.1)
    finish(start(cache, tmp_path, *words))
    for name in NAMES:
        assert numbers(tmp_path / "sweep" / name) == numbers(swept[1] / name)
    assert len(list(cache.glob("victim/*/artifact.json"))) == 2


def test_plan_counts_what_is_there_and_what_is_not(swept, capsys, tmp_path, monkeypatch):
    from backdoor.sweep.forecast import run as plan

    monkeypatch.setenv("BACKDOOR_CACHE", str(swept[0]))
    words = [word.replace("badnets,blended", "badnets,blended,sig").replace("none,ft", "none,ft,ac") for word in JOBS]
    before = set(swept[0].rglob("*"))
    assert plan(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("jobs                  9  ")
    assert said.splitlines()[1].startswith("victims               3  used 9 times, 1 to train (")  # sig's alone
    assert set(swept[0].rglob("*")) == before
    assert plan(["-m", "attack=badnet"]) == 2
    assert "did you mean 'badnets'" in capsys.readouterr().err


def test_plan_knows_times_of_like_stages(tmp_path):
    from backdoor.sweep.forecast import Past, grouped, plan_lines, shown_time
    from backdoor.sweep.stage_keys import Part

    for number, spent in enumerate((100.0, 300.0)):
        folder = tmp_path / "victim" / str(number)
        folder.mkdir(parents=True)
        mark = {"key": f"k{number}", "like": "l"}
        (folder / "artifact.json").write_text(json.dumps({"of": {"mark": mark}}))
        (folder / "outcome.json").write_text(json.dumps({"seconds": spent}))
    (tmp_path / "victim" / "half").mkdir()
    (tmp_path / "victim" / "half" / "artifact.json").write_text('{"of": ')
    past = Past.of(tmp_path)
    parts = [Part("victim", "victim", key, "l") for key in ("k0", "k0", "new")] + [Part("defense", "x", "y", "z")]
    groups = grouped(parts, {"k0", "new", "y"}, past)
    victim = groups[1]
    assert (victim.distinct, victim.uses, victim.todo, victim.seconds, victim.unknown) == (2, 3, 1, 200.0, 0)
    assert grouped(parts, {"k0"}, past)[1].todo == 0
    lines = plan_lines(4, 1, groups, 2)
    assert "at least 3.3 min, 100 s on 2 workers" in lines[-2]
    assert [shown_time(value) for value in (5, 7200, 86400 * 3)] == ["5 s", "2.0 h", "3.0 days"]
