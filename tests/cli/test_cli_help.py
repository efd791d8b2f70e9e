"""What --help, --version and the list say, and how fast."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from backdoor.configs.listing import groups
from backdoor.configs.places import conf_dir
from helpers.cli import python


def processor_time() -> float:
    """Seconds that finished child processes have used."""
    used = os.times()
    return used.children_user + used.children_system


@pytest.mark.parametrize(
    ("module", "call", "words"),
    [
        ("backdoor.cli.main", "run_command", ["--help"]),
        ("backdoor.cli.main", "run_command", ["attack.ratoi=0.1"]),
        ("backdoor.cli.main", "run_command", ["--cfg", "job"]),
        ("backdoor.list", "main", []),
        ("backdoor.preview", "main", ["--help"]),
    ],
)
def test_answers_at_once_and_without_torch(module: str, call: str, words: list[str]) -> None:
    """On the project's own conf/. The best of three, in processor time: the machine may be busy."""
    seconds = []
    for _ in range(3):
        start = processor_time()
        # --help leaves through sys.exit, so the check has to come at exit too.
        code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
        done = python("-c", f"{code}; from {module} import {call}; sys.argv[1:] = {words!r}; {call}()")
        seconds.append(processor_time() - start)
        assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert min(seconds) < 2


def test_help_says_what_to_type() -> None:
    done = python("-m", "backdoor", "--help")
    assert done.returncode == 0, done.stderr
    choices = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert {"attack", "defense", "model", "data"} < choices
    assert "attack/base" not in choices  # a part that choices share, not a choice
    for text in (
        "python -m backdoor attack=badnets defense=abl",
        "-m attack=",
        "badnets",
        "seed=",
        "--cfg job",
    ):
        assert text in done.stdout


def test_options_that_help_names_are_there(tmp_path: Path) -> None:
    shown = python("-m", "backdoor", "--help").stdout.partition("== Options")[2].partition("\n== ")[0]
    examples = [line.partition("   ")[0].replace("PATH", str(tmp_path)) for line in shown.splitlines()[1:] if line]
    assert len(examples) >= 6
    for example in examples:
        done = python("-m", "backdoor", *example.split(), "--cfg", "job", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_version() -> None:
    done = python("-m", "backdoor", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "backdoor")


def test_list_reads_first_comment_lines_and_hides_parts(conf: Path) -> None:
    assert groups(conf) == {
        "attack": {"badnets": "Patch.", "broken": "Not YAML.", "sig": "Sinusoid."},
        "defense": {"abl": "ABL."},
        "data": {"digits": "Digits.", "folder": "Your own."},
        "trigger": {"patch": "A square."},
    }


def test_every_choice_says_what_it_is() -> None:
    nameless = [
        f"{group}={name}" for group, choices in groups(conf_dir()).items() for name, line in choices.items() if not line
    ]
    assert nameless == []


def test_list_as_text_and_json() -> None:
    text = python("-m", "backdoor.list", "attack")
    assert text.returncode == 0
    assert any(line.startswith("attack=badnets ") and "BadNets" in line for line in text.stdout.splitlines())
    assert "\x1b" not in text.stdout
    everything = json.loads(python("-m", "backdoor.list", "--json").stdout)
    assert "badnets" in everything["attack"]
    wrong = python("-m", "backdoor.list", "atack")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: atack: no such group; did you mean 'attack'")
