"""Files in the store that are not what was written: said in one line, set aside, made again, whatever the damage."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from backdoor.errors import UserError
from backdoor.report.records import SCHEMA
from backdoor.stages import Fit, Mark, Outcome, Pipeline, Stage, Step
from backdoor.store.store import META, Store, seal
from backdoor.sweep.reuse import find, keep, reuse
from backdoor.training import Classifier
from helpers.contexts import fit, same, small_context, small_state
from helpers.observing import hearing

DEEP = "[" * 100_000


def flip(path: Path) -> None:
    """One bit, in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write(text: str):
    return lambda folder: (folder / "value").write_text(text) and None


def read(folder: Path) -> str:
    return (folder / "value").read_text()


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": lambda folder: flip(folder / "value"),
    "another's file": lambda folder: (folder / "value").write_text("two"),
    "cut off": lambda folder: (folder / "value").write_text("on"),
    "missing": lambda folder: (folder / "value").unlink(),
    "a folder": lambda folder: (folder / "value").unlink() or (folder / "value").mkdir(),
    "no meta": lambda folder: (folder / META).unlink(),
    "meta a list": lambda folder: (folder / META).write_text("[]"),
    "meta null": lambda folder: (folder / META).write_text("null"),
    "meta without hashes": lambda folder: (folder / META).write_text("{}"),
    "meta nested": lambda folder: (folder / META).write_text(DEEP),
    "meta no text": lambda folder: (folder / META).write_bytes(b"\xff\x00"),
    "meta a folder": lambda folder: (folder / META).unlink() or (folder / META).mkdir(),
    "a file instead": a_file_instead,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_as_written_is_made_again(tmp_path, damage):
    said: list[str] = []
    store = Store(tmp_path, said.append)
    store.fetch("kind", "key", make=write("one"), load=read)
    DAMAGE[damage](tmp_path / "kind" / "key")
    assert store.fetch("kind", "key", make=write("anew"), load=read) == ("anew", False)
    assert store.fetch("kind", "key", make=write("never"), load=read) == ("anew", True)
    (line,) = said
    assert "stored kind key" in line
    assert "made again" in line
    assert "\n" not in line
    assert (tmp_path / "kind" / "key.bad").exists()


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_want_of_memory_is_no_damage(tmp_path, error):
    store = Store(tmp_path)
    store.fetch("kind", "key", make=write("one"), load=read)

    def load(folder: Path) -> str:
        raise error

    with pytest.raises(type(error)):
        store.fetch("kind", "key", make=write("two"), load=load)
    assert store.fetch("kind", "key", make=write("two"), load=read) == ("one", True)


def test_leftovers_that_are_files_are_in_nobodys_way(tmp_path):
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "key.part").write_text("")
    assert Store(tmp_path).fetch("kind", "key", make=write("one"), load=read) == ("one", False)
    (tmp_path / "other").write_text("")
    with pytest.raises(UserError, match=r"store\.dir=.*expected other in it to be a folder"):
        Store(tmp_path).fetch("other", "key", make=write("one"), load=read)


class Score(Stage):
    """Gives each row a score."""

    provides = frozenset({"gap"})

    def run(self, state, context, *, name, work) -> Outcome:
        return Outcome(replace(state, scores={**state.scores, "gap": torch.arange(len(state.train)) / 60}))


def run_chain(root: Path, said: list[str], seed: int = 0) -> dict[str, tuple[bool, object]]:
    """Stage -> (hit, its state)."""
    make = Fit(epochs=1, module=lambda **kwargs: Classifier(lr=0.1, **kwargs), batch_size=10)
    steps = [
        Step("victim", make, "fit"),
        Step("score", Score(), "score"),
        Step("mark", Mark(score="gap", suspect=0.1, trusted=0.2), "mark"),
    ]
    ends = {}
    pipeline = Pipeline(
        Store(root, said.append), replace(small_context(), seed=seed), keys={"train": "rows"}, common={"seed": seed}
    )
    pipeline.run(small_state(), steps, lambda end: ends.update({end.step.name: (end.hit, end.state)}))
    return ends


@pytest.mark.parametrize("swapped", [False, True])
def test_a_model_that_was_changed_in_the_store_is_never_measured(tmp_path, swapped):
    """A bit of its weights, or the file of another seed's victim in its place: the first one's numbers come again."""
    said: list[str] = []
    first = run_chain(tmp_path, said)["victim"][1].model.state_dict()
    (own,) = (tmp_path / "victim").glob("*/model.safetensors")
    if swapped:
        other = run_chain(tmp_path, said, seed=1)["victim"][1].model.state_dict()
        assert not same(first, other)
        (theirs,) = set((tmp_path / "victim").glob("*/model.safetensors")) - {own}
        shutil.copyfile(theirs, own)
    else:
        flip(own)
    hit, state = run_chain(tmp_path, said)["victim"]
    assert not hit
    assert same(state.model.state_dict(), first)
    assert [line for line in said if "model.safetensors is not the file that was written" in line] == said
    assert run_chain(tmp_path, said)["victim"][0]


def rewritten(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = json.loads((folder / "outcome.json").read_text())
        (folder / "outcome.json").write_text(json.dumps({**record, **values}))

    return change


def tensors(**values: torch.Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({f"groups.{name}": value for name, value in values.items()}, folder / "tensors.safetensors")

    return change


MASK = torch.ones(60, dtype=torch.bool)
OUTCOMES: dict[str, Callable[[Path], object]] = {
    "list": lambda folder: (folder / "outcome.json").write_text("[]"),
    "null": lambda folder: (folder / "outcome.json").write_text("null"),
    "nested": lambda folder: (folder / "outcome.json").write_text(DEEP),
    "history": rewritten(history=[3]),
    "findings": rewritten(findings=[["a", 1]]),
    "seconds": rewritten(seconds="soon"),
    "names": rewritten(tensors=["groups.suspect"]),
    "number": rewritten(tensors=3),
    "lengths": tensors(suspect=MASK[:59].clone(), trusted=MASK),
    "dtypes": tensors(suspect=MASK.float(), trusted=MASK),
    "no tensors": lambda folder: (folder / "tensors.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("damage", OUTCOMES)
def test_an_outcome_that_cannot_be_one_is_made_again(tmp_path, damage):
    """Even where the hashes agree with it."""
    said: list[str] = []
    first = run_chain(tmp_path, said)["mark"][1]
    (folder,) = (path for path in (tmp_path / "stage").iterdir() if len(list(path.glob("tensors*"))) and is_mark(path))
    OUTCOMES[damage](folder)
    seal(folder, json.loads((folder / META).read_text()))
    hit, state = run_chain(tmp_path, said)["mark"]
    assert not hit
    assert same(state.groups, first.groups)
    assert len(said) == 1
    assert run_chain(tmp_path, said)["mark"][0]


def is_mark(folder: Path) -> bool:
    return json.loads((folder / META).read_text())["of"]["stage"] == "mark"


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def other_module(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, "state_dict": {"weight": torch.ones(2)}}, path)


def flip_weight(path: Path) -> None:
    content = path.read_bytes()
    weight = torch.load(path, weights_only=True)["state_dict"]["model.1.weight"].numpy().tobytes()
    assert content.count(weight) == 1
    path.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))


RESUME: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    "pickle in a zip": lambda path: torch.save(Bomb(), path),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a bit": flip_weight,
    "a list": lambda path: torch.save([], path),
    "no parts": lambda path: torch.save({}, path),
    "another module": other_module,
    "a folder": lambda path: path.unlink() or path.mkdir(),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(the weights of an undisturbed fit, the folder of one that was killed)."""
    top = tmp_path_factory.mktemp("killed")

    def kill(row) -> None:
        if row["epoch"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError), hearing(kill):
        fit(small_context(checkpoint_s=0.0), top / "killed")
    return fit(small_context(), top / "whole")[0], top / "killed"


@pytest.mark.parametrize("damage", RESUME)
def test_a_damaged_resume_point_is_set_aside_and_the_fit_starts_anew(tmp_path, monkeypatch, killed, damage):
    monkeypatch.chdir(tmp_path)
    whole, folder = killed
    work = shutil.copytree(folder, tmp_path / "work")
    RESUME[damage](work / "resume.ckpt")
    said: list[str] = []
    epochs = []
    with hearing(lambda row: epochs.append(row["epoch"])):
        weights, _ = fit(small_context(say=said.append), work)
    assert same(weights, whole)
    assert epochs == [1, 2, 3, 4, 5, 6]
    (line,) = said
    assert "set aside" in line
    assert "\n" not in line
    assert not Path("exploded").exists()
    assert not list(work.glob("resume.ckpt*"))


@pytest.mark.parametrize("name", ["result.json", "status.json", META])
def test_a_kept_result_that_was_changed_is_not_reused(tmp_path, capsys, name):
    cfg, run = OmegaConf.create({"store": {"dir": str(tmp_path / "store")}, "seed": 1}), tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"schema": SCHEMA, "stages": [], "final": {"asr": 0.25}}))
    (run / "status.json").write_text(json.dumps({"state": "done", "victim": "trained"}))
    keep(cfg, run, Store(tmp_path / "store"))
    kept = find(cfg)
    assert reuse(kept, cfg, tmp_path / "first")
    assert json.loads((tmp_path / "first" / "status.json").read_text())["victim"] == "hit"
    content = (kept / name).read_text()
    (kept / name).write_text(content.replace("0.25", "0.35") if "0.25" in content else "[]")
    assert not reuse(kept, cfg, tmp_path / "second")
    assert "cannot be used" in capsys.readouterr().out
    assert not (tmp_path / "second").exists()
    assert find(cfg) is None
    keep(cfg, run, Store(tmp_path / "store"))
    assert reuse(find(cfg), cfg, tmp_path / "second")
