"""`attack=external attack.run=FOLDER`: no trust in the folder's files, and one line that says what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from backdoor.attacks import FinishedRun, PoisonPlan
from backdoor.configs.adopt import run_words
from backdoor.configs.command import check_job, read_command
from backdoor.configs.finished import read_run
from backdoor.configs.safe import known_targets
from backdoor.errors import UserError
from backdoor.store.weights import save_tensors
from helpers.configs import targets
from helpers.finished import changed, refusal
from helpers.finished import finished as finished  # a fixture
from helpers.run import in_process

PLANTS = "backdoor.attacks.PoisonOnly"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("seed=4", "seed=4: asks for 4, but the run in attack.run="),
        ("reserved=0.05", "has 0.1, which is fixed"),
        ("data=cifar10", "data=cifar10: asks for cifar10, but the run in .* has digits"),
        ("data.image_size=32", "asks for 32, .* has 16"),
        ("model=small_cnn", "has {'width': 8}"),
        ("model=resnet18", "torchvision_net.* has .*small_cnn"),
        ("attack.target=0", "asks for 0, .* has 4"),
        ("+trigger@attack.trigger=square", r"Square.* has .*Patch"),
        ("label_map=all_to_all", "AllToAll.* has .*AllToOne"),
        ("victim.epochs=9", "asks for 9, .* has 3"),
        ("attack.train=.", "asks for ., .* has None"),
    ],
)
def test_a_word_that_contradicts_the_run_is_refused_with_both_values(finished, words, said):
    line = refusal(finished, words)
    assert line.startswith(f"{words}: asks for ")
    assert re.search(said, line), line


def test_words_that_repeat_the_run_and_where_its_images_lie_are_taken(finished, tmp_path):
    given = ["attack=external", f"attack.run={finished}", "seed=3", "model=small_cnn", "model.width=8", "reserved=0.1"]
    cfg = check_job(read_command([*given, *run_words(given)])).cfg
    assert (cfg.model.width, cfg.data.name, cfg.victim.enabled) == (8, "digits", False)

    def on_cifar(run):
        run["data"] |= {"_target_": "backdoor.data.Cifar10", "name": "cifar10", "root": "/elsewhere", "download": True}

    other = changed(finished, tmp_path / "other", on_cifar)
    given = ["attack=external", f"attack.run={other}", "data.root=here", "data.download=false", "defense=abl"]
    assert run_words(given) == ["data=cifar10"]
    cfg = check_job(read_command([*given, *run_words(given)])).cfg
    assert (cfg.data.root, cfg.data.download, cfg.data.image_size) == ("here", False, 16)
    assert cfg.defense.stages.isolate.epochs == 20  # the recipe of these data, not of digits
    with pytest.raises(UserError, match=r"different data \(cifar10, digits\); sweep over each data alone"):
        run_words(["attack=external", f"attack.run={finished},{other}"])
    assert run_words(["attack=external", f"attack.run={finished},{finished}"]) == ["data=digits"]


MISSING = {
    "weights/victim.safetensors": "holds no weights/victim.safetensors",
    "plan.npz": "holds no plan.npz",
    "status.json": "holds no status.json",
    "config.yaml": "holds no config.yaml",
}


@pytest.mark.parametrize("file", MISSING)
def test_a_folder_that_lacks_a_file_is_refused(finished, tmp_path, file):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    assert MISSING[file] in refusal(tmp_path / "run")


def test_folders_that_are_no_finished_run_are_refused(finished, tmp_path):
    assert "no such folder; expected the folder of a finished run" in refusal(tmp_path / "nowhere")
    run = changed(finished, tmp_path / "run", lambda run: None)
    (run / "status.json").write_text(json.dumps({"state": "failed"}))
    assert "that run is not finished (state: failed)" in refusal(run)
    (run / "status.json").write_text('{"state": "do')
    assert "status.json cannot be read; it is damaged or half written" in refusal(run)
    other = {"_target_": "backdoor.attacks.External", "name": "external"}
    given = changed(finished, tmp_path / "given", lambda run: run.update(attack=other))
    assert "that run planted nothing itself (attack=external)" in refusal(given)
    line = changed(finished, tmp_path / "line", lambda run: run["attack"].update(groups=["poison"]))
    assert "attack.groups that are no mapping" in refusal(line)
    with pytest.raises(UserError, match=r"attack.run=: expected the folder of a finished run, got nothing; name it"):
        run_words(["attack=external", "attack.run="])
    half = changed(finished, tmp_path / "half", lambda run: run.pop("model"))
    assert "config.yaml has no model" in refusal(half)
    (half / "config.yaml").write_text("data: [")
    assert "config.yaml cannot be read" in refusal(half)


def test_a_config_of_ones_own_is_refused_with_the_ways_that_work(finished, tmp_path):
    own = tmp_path / "conf"
    (own / "attack").mkdir(parents=True)
    (own / "attack" / "mine.yaml").write_text("name: mine\n")
    shutil.copyfile(finished / "config.yaml", own / "config.yaml")
    mine = changed(finished, tmp_path / "mine", lambda run: run["model"].update(_target_="mine.Network"))
    for place, said in (
        (own / "attack" / "mine.yaml", "is a file; expected the folder of a finished run"),
        (own, "holds no status.json; expected the folder of a finished run"),
        (mine, "names model._target_=mine.Network, which no installed conf/ names; refused"),
    ):
        line = refusal(place)
        assert said in line
        assert "--config-dir=ITS_FOLDER attack=NAME" in line
        assert "entry point backdoor.conf" in line


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("attack.trigger._target_", "os.system", "names attack.trigger._target_=os.system, which no installed conf"),
        ("data._target_", "backdoor.store.store.os.system", "data._target_=backdoor.store.store.os.system"),
        ("model._target_", "backdoor.data.cache.publish", "model._target_=backdoor.data.cache.publish"),
        ("attack.groups.poison._target_", "builtins.eval", "attack.groups.poison._target_=builtins.eval"),
        ("attack.groups.more", [{"_target_": "os.system"}], "attack.groups.more.0._target_=os.system"),
        ("attack._target_", "backdoor.attacks.External", "that run planted nothing"),
        ("model.width", "${oc.env:HOME}", "holds model.width=.*expected plain values"),
        ("seed", "${oc.env:HOME}", "holds seed="),
        ("model._target_", ["os.system"], "holds model._target_=.*expected a dotted name"),
        ("model._target_", [], "holds model._target_="),
        ("data._target_", {"_target_": "os.system"}, "holds data._target_="),
        ("model._partial_", True, "holds model._partial_=True, which no such part needs"),
        ("attack.trigger._recursive_", False, "holds attack.trigger._recursive_=False"),
        ("data.name", "digits hydra.run.dir", "expected the name of a choice"),
    ],
)
def test_what_could_run_code_is_refused(finished, tmp_path, place, value, said):
    def poison(run):
        *path, last = place.split(".")
        for name in path:
            run = run[name]
        run[last] = value

    folder = changed(finished, tmp_path / "run", poison)
    with pytest.raises(UserError, match=said):
        read_run(str(folder))


ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
FOREIGN = {
    "a0: &a0 [x, x]\n" + ALIASES: "holds an alias in line 2; expected plain values",
    "model: &m {more: *m}\n": "holds an alias in line 1",
    "more: !!python/object/apply:os.mkdir [hi]\n": "holds a tag in line 1",
    "more: !!binary aGk=\n": "holds a tag",
    "more: " + "[" * 400 + "]" * 400 + "\n": "has more than 32 levels",
    "more: " + "{a: " * 40_000 + "}" * 40_000 + "\n": "has more than 32 levels",
    "more: '" + "x" * 300_000 + "'\n": "has more than 256 kB",
    "a: 1\n---\nb: 1\n": "cannot be read",
    "? [a]\n: 1\n": "cannot be read",
    "seed: 2020-13-45\n": "has no attack",  # no date: a text
}


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_yaml_that_is_more_than_plain_values_is_refused_at_once(tmp_path, text):
    (tmp_path / "status.json").write_text('{"state": "done"}')
    (tmp_path / "config.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(UserError, match=FOREIGN[text]):
        read_run(str(tmp_path))
    assert time.process_time() - started < 5


def test_every_attack_of_the_package_is_known(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert set(targets([config[part] for part in ("attack", "data", "model")])) <= known_targets()
    assert all(target.startswith("backdoor.") for target in known_targets())


def finished_attack(folder: Path) -> FinishedRun:
    """The attack as a job would make it."""
    return instantiate(check_job(read_command(["attack=external", f"attack.run={folder}"])).cfg.attack, _convert_="all")


def test_damaged_files_are_named(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    labels = torch.arange(630) % 10
    with pytest.raises(UserError, match=r"plan.npz is about other images: 630 train rows .* have 500"):
        finished_attack(run).plan(labels[:500], 10, 0)
    other = replace(PoisonPlan.load(run / "plan.npz"), labels=torch.zeros(63, dtype=torch.int64))  # of target 4
    other.save(run / "plan.npz")
    with pytest.raises(UserError, match=r"plan.npz is about other images"):
        finished_attack(run).plan(labels, 10, 0)
    (run / "plan.npz").write_bytes((run / "plan.npz").read_bytes()[:100])
    with pytest.raises(UserError, match=r"attack.run=.*plan.npz: expected an npz of plain arrays.*; it is damaged"):
        finished_attack(run).plan(labels, 10, 0)
    weights = run / "weights" / "victim.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # a hard link: the first run's file must stay as it is
    weights.write_bytes(whole[: len(whole) // 2])
    shutil.copyfile(finished / "plan.npz", run / "plan.npz")
    words = ("attack=external", f"attack.run={run}", "defense=none", "trainer=debug")
    status, said = in_process(tmp_path / "cache", *words, f"hydra.run.dir={tmp_path / 'failed'}")
    assert status == 2
    assert f"error: attack.run={weights}: not a readable safetensors file" in said


def test_other_images_than_the_runs_are_refused(finished, tmp_path):
    """As many of them, from another split: only their content tells."""
    run = changed(finished, tmp_path / "run", lambda run: run["data"].update(split_seed=1))
    words = ("attack=external", f"attack.run={run}", "defense=none", "trainer=debug")
    status, said = in_process(tmp_path / "cache", *words, f"hydra.run.dir={tmp_path / 'failed'}")
    assert status == 2
    assert "the images of data=digits are others than those of that run; set data.root" in said


def test_a_trigger_that_is_not_the_configs_is_refused(finished, tmp_path):
    run = changed(finished, tmp_path / "run", lambda run: warped(run["attack"]))
    with pytest.raises(UserError, match=r"attack.run=.*trigger.safetensors: no such file"):
        finished_attack(run).equip({}, None)
    attack = finished_attack(run)
    save_tensors({"control": attack.trigger.control + 1}, run / "trigger.safetensors")
    with pytest.raises(UserError, match=r"trigger.safetensors and config.yaml do not agree"):
        attack.equip({}, None)
    save_tensors({"other": attack.trigger.control}, run / "trigger.safetensors")
    with pytest.raises(UserError, match="do not agree"):
        attack.equip({}, None)
    (run / "trigger.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # without any tensor
    with pytest.raises(UserError, match="do not agree"):
        attack.equip({}, None)


def warped(attack: dict) -> None:
    """Replace every trigger of a plain config by a warp."""
    warp = {"_target_": "backdoor.triggers.Warp"}
    attack["trigger"], attack["groups"]["poison"]["trigger"] = warp, warp
