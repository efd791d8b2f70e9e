"""Classes by name, and images of one channel: what a user would write works by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image
from safetensors.torch import load_file

from backdoor.configs.class_names import expected, number_classes
from backdoor.configs.command import check_job, read_command
from backdoor.errors import UserError
from backdoor.experiment.build import assemble
from helpers.configs import composed

SPECIFIC = ("label_map=source_specific", "attack.label_map.sources")
# Words -> the place in the config, and the number that is there afterwards.
NAMED: dict[tuple[str, ...], tuple[str, Any]] = {
    ("data=cifar10", "attack.target=cat"): ("attack.target", 3),
    ("data=cifar10", "attack.target=CAT"): ("attack.target", 3),
    ("data=gtsrb", "attack.target=Stop sign"): ("attack.target", 14),  # what a shell leaves of quotes
    ("data=gtsrb", "attack.target='Stop sign'"): ("attack.target", 14),
    ("data=gtsrb", "attack.target='stop sign'"): ("attack.label_map.target", 14),
    ("data=cifar10", SPECIFIC[0], f"{SPECIFIC[1]}=[cat,2,dog]"): (SPECIFIC[1], [3, 2, 5]),
    ("data=fashion_mnist", "attack=sig", "attack.target='ankle boot'"): ("attack.target", 9),
    ("data=cifar10", "label_map=all_to_all"): ("attack.target", 0),
}
WRONG: dict[tuple[str, ...], str] = {
    ("data=cifar10", "attack.target=cats"): "attack.target=cats: expected a class from 0 to 9, or its name: airplane, ",
    ("data=cifar10", "attack.target=10"): "attack.target=10: expected a class from 0 to 9, or its name: airplane, ",
    ("data=gtsrb", "attack.target=stop"): "attack.target=stop: expected a class from 0 to 42, or its name: Speed limit",
    ("data=gtsrb", "attack.target=43"): "attack.target=43: expected a class from 0 to 42, or its name: Speed limit 20",
    ("data=cifar10", SPECIFIC[0], f"{SPECIFIC[1]}=[cat,hen]"): f"{SPECIFIC[1]}=hen: expected a class from 0 to 9",
    ("data=digits", "attack.target=three"): "attack.target=three: expected a class from 0 to 9",
}


def numbered(*words: str) -> Any:
    """The config of a command, with numbers for the names."""
    cfg = composed(*words)
    number_classes(cfg)
    return cfg


@pytest.mark.parametrize("words", NAMED)
def test_a_name_becomes_its_number(words):
    place, number = NAMED[words]
    cfg: Any = numbered(*words)
    for key in place.split("."):
        cfg = cfg[key]
    assert cfg == number


@pytest.mark.parametrize("words", WRONG)
def test_what_is_no_class_is_told_their_names(words):
    with pytest.raises(UserError) as told:
        assemble(numbered(*words))
    assert str(told.value).startswith(WRONG[words])


def test_the_nearest_names_are_suggested_and_a_long_list_is_cut():
    with pytest.raises(UserError, match=r"\.\.\. \(43 in all\); did you mean 'Stop sign'\?$"):
        numbered("data=gtsrb", "attack.target=stop")
    assert expected(["b", "a"], "9") == "expected a class from 0 to 1, or its name: b, a"
    assert expected(["0", "1", "2"], "9") == "expected a class from 0 to 2"


def test_names_that_differ_in_case_alone_are_taken_as_they_are_written(tmp_path):
    pictures(tmp_path, ["Cat", "cat", "dog"])
    words = ("data=folder", f"data.root={tmp_path}")
    assert numbered(*words, "attack.target=cat").attack.target == 1
    with pytest.raises(UserError, match=r"^attack.target=CAT: expected a class .* name: Cat, cat, dog"):
        numbered(*words, "attack.target=CAT")


def pictures(root: Path, classes: list[str]) -> None:
    """A tree with two small images a class in train and test."""
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(root / part / name / f"{number}.png")


def test_a_number_that_is_none_of_a_folders_classes_is_told_their_names(command, tmp_path):
    """They are known once the folder is read; nothing has been trained then."""
    pictures(tmp_path / "data", ["ant", "bee", "cow"])
    words = ("data=folder", f"data.root={tmp_path / 'data'}", "data.image_size=8", "attack.target=3", "trainer=debug")
    status, _, said = command(*words, "defense=none", cache=tmp_path / "cache")
    assert status == 2
    assert said.splitlines()[-1] == "error: attack.target=3: expected a class from 0 to 2, or its name: ant, bee, cow"
    assert not list((tmp_path / "cache").glob("victim/*"))


def test_a_folders_classes_are_named_in_groups_too(tmp_path):
    pictures(tmp_path, ["ant", "bee", "cow"])
    group = (
        "{_target_:backdoor.attacks.PoisonGroup,ratio:0.5,trigger:null,label_map:{_target_:backdoor.attacks.AllToOne"
    )
    cfg = numbered("data=folder", f"data.root={tmp_path}", f"+attack.groups.second={group},target:cow}}}}")
    assert cfg.attack.groups.second.label_map.target == 2


def test_arrays_have_no_names(tmp_path):
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    words = ("data=arrays", f"data.train={tmp_path / 'train.npz'}", f"data.test={tmp_path / 'test.npz'}")
    assert numbered(*words, "attack.target=1").attack.target == 1
    with pytest.raises(UserError, match=r"^attack\.target=cat: expected the number of a class"):
        numbered(*words, "attack.target=cat")


def test_a_job_of_a_sweep_is_the_same_under_either_spelling():
    """The store's keys and the names of runs see numbers alone."""
    jobs = [check_job(read_command(["data=cifar10", f"attack.target={word}"])) for word in ("3", "cat")]
    assert jobs[0].cfg == jobs[1].cfg


@pytest.mark.parametrize("attack", ["badnets", "blended", "sig"])
def test_grey_digits_work_by_themselves(command, tmp_path, attack):
    words = ("model=small_cnn", "model.width=4", "trainer=debug", "threads=1", "defense=none", "data.channels=1")
    status, _, said = command(f"attack={attack}", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    weights = load_file(tmp_path / "run" / "weights" / "victim.safetensors")
    assert weights["mean"].tolist() == [[[pytest.approx(0.3053)]]]
    assert weights["std"].tolist() == [[[pytest.approx(0.3760)]]]


def test_grey_and_colour_share_a_normalisation():
    def source(*words: str) -> Any:
        return instantiate(composed(*words).data, _convert_="all")

    grey = source("data=digits", "data.channels=1").normalisation(1)
    assert grey == ((0.3053,), (0.3760,))  # that of the same three channels, to the last bit
    colour = source("data=cifar10", "data.root=x").normalisation(3)
    luma = source("data=cifar10", "data.root=x").normalisation(1)
    for three, (one,) in zip(colour, luma, strict=True):
        assert one == pytest.approx(0.299 * three[0] + 0.587 * three[1] + 0.114 * three[2])
    assert source("data=mnist", "data.root=x").normalisation(3)[0] == (0.1307,) * 3
    with pytest.raises(UserError, match=r"^data\.mean=\[0\.1, 0\.2\]: expected 3 values, one a channel"):
        source("data=digits", "data.mean=[0.1,0.2]").normalisation(3)
