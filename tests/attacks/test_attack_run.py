"""`attack=external attack.run=FOLDER`: the run's data, poison and victim bit for bit, and no trust in its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from backdoor.attacks import PoisonPlan
from backdoor.configs.finished import read_run
from backdoor.errors import UserError
from backdoor.store.npz import save_npz
from helpers.command import QUICK, read_json
from helpers.finished import changed, prepared
from helpers.finished import finished as finished  # a fixture
from helpers.run import in_process

PLANTS = "backdoor.attacks.PoisonOnly"
FEW = ("data.limit.train=300", "data.limit.test=100", "data.image_size=16", "seed=3", "defense=none")
MORE = {
    "inputaware": ("attack.stages.mask.width=4", "attack.stages.victim.module.width=4"),
    "ssba": ("attack.stages.encoder.steps=3",),
}


@pytest.mark.parametrize("attack", ["badnets", "sig", "lc", "trojannn", "ssba", "wanet", "inputaware"])
def test_poison_and_tests_are_the_runs_bit_for_bit_and_nothing_is_trained(tmp_path, attack):
    planting = (*QUICK, f"attack={attack}", *FEW, "reserved=0.1", *MORE.get(attack, ()))
    status, said = in_process(tmp_path / "first", *planting, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    first, trusted = prepared(tmp_path / "first", tmp_path / "again", *planting)
    with np.load(tmp_path / "run" / "plan.npz") as file:  # as older runs wrote it, without covers
        save_npz(tmp_path / "run" / "plan.npz", **{name: file[name] for name in file.files if name != "covers"})
    words = ("trainer=debug", "attack=external", f"attack.run={tmp_path / 'run'}", "defense=ft")
    second, same = prepared(tmp_path / "second", tmp_path / "taken", *words)
    for one, other in (
        (first.train, second.train),
        (first.truth.attacks["poison"].split, second.truth.attacks["poison"].split),
        (trusted, same),
    ):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.index, other.index)
    assert torch.equal(first.truth.poisoned, second.truth.poisoned)
    assert len(first.truth.attacks) == len(second.truth.attacks) == 1
    goals = [one.truth.attacks["poison"].goal.wanted(torch.arange(10)) for one in (first, second)]
    assert torch.equal(*goals)
    assert first.truth.targets == second.truth.targets
    assert first.plan.covers == second.plan.covers
    assert bool(second.plan.covers) == (attack in ("wanet", "inputaware"))
    assert first.tensors.keys() == second.tensors.keys()
    assert second.checkpoint == tmp_path / "run" / "weights" / "victim.safetensors"
    assert not [path for path in (tmp_path / "second").glob("*/*") if path.parent.name in ("stage", "victim")]


def test_a_defense_on_a_run_has_the_numbers_of_a_run_of_its_own(finished, tmp_path):
    words = ("trainer.monitor_images=0", "threads=1", "defense.stages.finetune.epochs=2", "defense=ft")
    new = tmp_path / "empty store"
    given = (f"attack.run='{finished}'", "attack=external", f"hydra.run.dir={tmp_path / 'run'}")
    status, said = in_process(new, *words, *given)
    assert status == 0, said
    theirs, ours = read_json(finished), read_json(tmp_path / "run")
    names = ("c_acc", "c_acc_non_target", "asr", "r_acc")
    assert [theirs["stages"][0][name] for name in names] == [ours["stages"][0][name] for name in names]
    assert 0.3 < ours["stages"][0]["c_acc"] < 1
    assert "der" in ours["final"]
    assert (ours["attack"], ours["seed"], ours["data"]) == ("badnets", 3, "digits")
    assert read_json(tmp_path / "run", "status.json") == {"state": "done", "victim": "none"}
    assert not (new / "victim").exists()
    cfg = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (cfg.seed, cfg.reserved, cfg.model.width, cfg.attack.run) == (3, 0.1, 8, str(finished))
    with pytest.raises(UserError, match=f"itself took its victim from attack.run={finished}; name that one"):
        read_run(str(tmp_path / "run"))
    # The same chain in one run, trained by the first run's store.
    same = ("model=small_cnn", "model.width=8", "attack.target=4", "data.limit.train=700", "data.image_size=16")
    more = ("seed=3", "reserved=0.1", "victim.epochs=3", f"hydra.run.dir={tmp_path / 'whole'}")
    status, said = in_process(finished.parent / "cache", *words, *same, *more)
    assert status == 0, said
    assert read_json(tmp_path / "whole")["final"]["asr"] == ours["final"]["asr"]
    left, right = ((tmp_path / run / "weights" / "finetune.safetensors").read_bytes() for run in ("whole", "run"))
    assert left == right


def test_a_clean_run_is_a_run_to_defend(tmp_path):
    planting = (*QUICK, "attack=none", *FEW, "reserved=0.1", f"hydra.run.dir={tmp_path / 'clean'}")
    status, said = in_process(tmp_path / "first", *planting)
    assert status == 0, said
    words = (f"attack.run={tmp_path / 'clean'}", "attack=external", "trainer=debug", "threads=1", "defense=ft")
    status, said = in_process(tmp_path / "empty store", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    theirs, ours = read_json(tmp_path / "clean"), read_json(tmp_path / "run")
    assert ours["attack"] == "none"
    assert ours["stages"][0]["c_acc"] == theirs["stages"][0]["c_acc"]
    assert [stage["name"] for stage in ours["stages"]] == ["victim", "finetune"]
    assert not {"asr", "r_acc", "der"} & set(ours["final"])
    assert not (tmp_path / "empty store" / "victim").exists()
    PoisonPlan.none(269).save(tmp_path / "clean" / "plan.npz")
    with pytest.raises(UserError, match=r"plan.npz is about other images: 269 train rows with roles"):
        prepared(tmp_path / "empty store", tmp_path / "other", *words)


def test_a_sweep_over_defenses_is_checked_before_its_first_job(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("-m", "trainer=debug", "trainer.monitor_images=0", "threads=1", "attack=external")
    status, said = in_process(
        finished.parent / "cache", *words, f"attack.run={finished}", "defense=none,spectral", "hydra.sweep.dir=sweep"
    )
    assert status == 0, said
    assert [read_json(Path("sweep") / name)["seed"] for name in ("0-external-none", "1-external-spectral")] == [3, 3]
    bare = changed(finished, tmp_path / "bare", lambda run: run.update(reserved=0))
    status, said = in_process(tmp_path / "cache", *words, f"attack.run={bare}", "defense=none,ft")
    assert status == 2
    assert "its victim has seen every row and defense=ft has none to trust; make the run again with reserved=0" in said
    assert not (tmp_path / "multirun").exists()


def test_the_preview_of_a_run_shows_its_trigger(finished, command, tmp_path):
    words = ("attack=external", f"attack.run={finished}", "preview.images=2", f"hydra.run.dir={tmp_path / 'look'}")
    status, _, said = command(*words, program=("backdoor.experiment.appearance", "preview"))
    assert status == 0, said
    assert list(read_json(tmp_path / "look", "preview.json")["triggers"]) == ["test"]
