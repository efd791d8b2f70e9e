"""The command line as a user meets it: real processes, exit status and what is printed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from backdoor.configs import command as cli_check
from backdoor.configs import explain as cli_errors
from backdoor.errors import UserError
from backdoor.sweep.jobs import expand
from helpers.cli import PROGRAM, SRC, program

MISTAKES = {
    "attack=badnet": "attack=badnet: no such attack; did you mean 'badnets'? Choices: badnets, broken, sig",
    "atack=badnets": "atack: no such option; did you mean 'attack'",
    "attack.ratoi=0.1": "no such option 'ratoi' in 'attack'; did you mean 'ratio'? Choices: ratio, target",
    "ratio=0.1": "ratio: no such option; did you mean 'attack.ratio'?",
    "defense.stages.unlearn.epohcs=3": "'epohcs' in 'defense.stages.unlearn'; did you mean 'epochs'?",
    "defense.stages.unlern.lr=3": "no such option 'unlern' in 'defense.stages'; did you mean 'unlearn'?",
    "~defense.stages.unlern": "defense.stages.unlern: no such option 'unlern' in 'defense.stages'; did",
    "seed.x=3": "seed.x: 'seed' is a single value",
    "hydra.run.dri=x": "hydra.run.dri: no such option 'dri' in 'hydra.run'; did you mean 'dir'?",
    "hydra/laucher=basic": "hydra/laucher: no such option; did you mean 'hydra/launcher'",
    "attack=badnets,sig": "attack=badnets,sig: several values; add -m to run each of them",
    "attack": "attack: not an override; expected key=value",
    "attack.ratio=(a": "attack.ratio=(a: cannot be read; expected key=value",
    "+attack.ratio=2": "+attack.ratio: it is there already; write attack.ratio=VALUE",
    "+attack=sig": "+attack: it is there already; write attack=VALUE",
    "trigger=patch": "trigger: this config has no place for a choice of trigger; write +trigger=NAME",
    "attack=sig trigger=patch": "trigger: did you mean trigger@attack.trigger=VALUE?",
    "attack=broken": "attack/broken.yaml, line ",
    "data=folder": "data.root: required, and no value was given; add data.root=VALUE",
    "seed=${attack.x}": "seed: cannot be resolved: Interpolation key 'attack.x' not found",
    "hydra.run.dir=conf/config.yaml/x": "hydra.run.dir: cannot write 'conf/config.yaml/x' (Not a directory)",
    "--attack=badnets": "--attack=badnets: no such flag; options are written without dashes (attack=badnets)",
    "--config-name=conifg": "--config-name=conifg: no such config; did you mean 'config'?",
    "--config-dir=nowhere": "--config-dir=nowhere: no such folder",
    "--cfg": "argument --cfg/-c: expected one argument",
    "--experimental-rerun=x": "--experimental-rerun: not supported",
    # In a sweep, the bad value stands in a late job.
    "-m attack=badnets,sgi": "attack=sgi: no such attack; did you mean 'sig'?",
    "-m seed=1,2 data=digits,folder": "data.root: required",
    "-m attack=sig,badnets attack.delta=1": "attack.delta: no such option 'delta' in 'attack'",
    "attack=sig,badnets -m seed=0,${attack.delta}": "seed: cannot be resolved",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_gets_one_line_before_anything_runs(conf: Path, words: str) -> None:
    done = program(conf, "open('ran', 'w')", *words.split())
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert MISTAKES[words] in lines[0]
    assert not (conf.parent / "ran").exists()


def test_a_good_command_runs_every_job_of_a_sweep(conf: Path) -> None:
    body = "open('ran', 'a').write(f'{cfg.seed}{cfg.attack.ratio} ')"
    done = program(conf, body, "seed=1,2", "-m", "attack=badnets,sig", "attack.ratio=0.5")
    assert done.returncode == 0, done.stderr
    assert (conf.parent / "ran").read_text() == "10.5 10.5 20.5 20.5 "


def test_a_folder_of_ones_own_adds_choices(conf: Path) -> None:
    (conf.parent / "own" / "attack").mkdir(parents=True)
    (conf.parent / "own" / "attack" / "mine.yaml").write_text("# Mine.\nsecret: 7\n")
    words = ("--config-dir", "own", "copy=0")
    done = program(conf, "print(cfg.attack.secret)", *words, "attack=mine")
    assert (done.returncode, done.stdout) == (0, "7\n")
    wrong = program(conf, "pass", *words, "attack=mine", "attack.secert=1")
    assert "did you mean 'secret'?" in wrong.stderr
    assert program(conf, "pass", *words, "-m", "attack=mine,badnets").returncode == 0


FULL = "the disk is full; free some space"

RAISED = {
    "from backdoor.errors import UserError\nraise UserError('attack.ratio: expected\\n[0, 1]')": (
        2,
        "error: attack.ratio: expected [0, 1]",
    ),
    "import os; os.write(os.open('/dev/full', os.O_WRONLY), b'x')": (2, FULL),
    "raise RuntimeError('I/O error: No space left on device (os error 28)')": (2, FULL),
    "open('/nowhere/file').read()": (1, "FileNotFoundError: [Errno 2] No such file or directory"),
    "1 / 0": (1, "ZeroDivisionError: division by zero"),
    "cfg.attack.typo": (1, "ConfigAttributeError: Key 'typo' is not in struct"),
    "raise KeyboardInterrupt": (130, "interrupted"),
    "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt:\n    sys.exit(1)": (130, "interrupted (Ctrl-C)"),
    "sys.exit(7)": (7, ""),
}


@pytest.mark.parametrize("body", RAISED)
def test_what_an_experiment_raises(conf: Path, body: str) -> None:
    status, said = RAISED[body]
    done = program(conf, body)
    assert done.returncode == status
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (status == 1)


def test_every_failing_job_of_a_sweep_is_told_and_the_others_run(conf: Path) -> None:
    body = "open('ran', 'a').write(str(cfg.seed))\nif cfg.seed != 2: raise UserError(f'seed: bad {cfg.seed}')"
    done = program(conf, "from backdoor.errors import UserError\n" + body, "-m", "seed=1,2,3")
    assert done.returncode == 2
    assert (conf.parent / "ran").read_text() == "123"
    assert "job 0 failed: seed: bad 1" in done.stderr
    assert "job 2 failed: seed: bad 3" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 2 of 3 jobs failed; the first: seed: bad 1"
    assert done.stdout.splitlines()[-2] == "3 jobs: 1 done, 2 failed"


def test_full_error_asks_for_the_traceback(conf: Path) -> None:
    body = "from backdoor.errors import UserError\nraise UserError('seed: bad')"
    done = program(conf, body, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_while_it_runs(conf: Path) -> None:
    # A job that a script starts in the background ignores SIGINT from birth; a user's terminal does not.
    heeded = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = heeded + PROGRAM.format(body="    import time\n    print('up', flush=True)\n    time.sleep(30)")
    job = subprocess.Popen(
        [sys.executable, "-c", code, "--config-path", str(conf)],
        cwd=conf.parent,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=20)
    assert (job.returncode, said) == (130, "interrupted (Ctrl-C)\n")


def test_errors_inside_instantiate() -> None:
    """Hydra wraps whatever a constructor raises; only the user's part of it becomes a line."""

    def explained(text: str) -> str | None:
        try:
            instantiate(OmegaConf.create(text), _convert_="all")
        except Exception as error:
            return cli_errors.explain(error)
        raise AssertionError("nothing was raised")

    wrong_argument = explained("attack: {_target_: backdoor.errors.suggest, word: a, choises: [b]}")
    assert wrong_argument is not None
    assert wrong_argument.startswith("attack: suggest() got an unexpected keyword argument 'choises'")
    missing = explained("attack: {_target_: backdoor.errors.sugest}")
    assert missing is not None
    assert missing.startswith("attack._target_: Error locating target 'backdoor.errors.sugest'")
    # A bug inside the callee: sorted() over a number.
    assert explained("attack: {_target_: backdoor.errors.suggest, word: a, choices: 3}") is None
    # A user's mistake inside the callee.
    command_line = "{_target_: backdoor.configs.command.read_command, argv: ['--attack=badnets']}"
    assert str(explained(command_line)).startswith("--attack=badnets: no such flag")


def test_a_read_only_disk_is_told() -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "/mnt/out")
    line = cli_errors.explain(error)
    assert line is not None
    assert line.startswith("'/mnt/out': Read-only file system; hydra.run.dir and store.dir must be writable")


def test_expand_is_the_product_in_the_order_hydra_runs_it() -> None:
    jobs = list(expand(["a=1,2", "b=[1,2]", "c=choice(x,y)", "d='p,q'"]))
    assert jobs == [[f"a={a}", "b=[1,2]", f"c={c}", "d='p,q'"] for a in (1, 2) for c in "xy"]


def test_check_config_names_every_missing_key_and_nested_references() -> None:
    with pytest.raises(UserError, match=r"^a\.b: required.*\(and so are c\[0\]\.d\)$"):
        cli_check.check_config(OmegaConf.create({"a": {"b": "???"}, "c": [{"d": "???"}]}))
    with pytest.raises(UserError, match=r"^a\[1\]\.b: cannot be resolved"):
        cli_check.check_config(OmegaConf.create({"a": [1, {"b": "${nope}"}]}))
    cli_check.check_config(OmegaConf.create({"a": {"b": "${c}"}, "c": 1, "n": None}))
