"""`label_map=NAME` on the command line: with every attack, alone in its place; what makes no sense is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from backdoor.attacks import AllToAll, AllToOne, CleanLabel, PoisonGroup, PoisonOnly, PoisonPlan, SourceSpecific
from backdoor.configs.command import check_job, read_command
from backdoor.configs.explain import explain
from backdoor.configs.places import conf_dir
from backdoor.errors import UserError
from backdoor.experiment.run import check
from backdoor.triggers import Square
from helpers.command import QUICK, read_json

CONF = Path(conf_dir())
ATTACKS = sorted(path.stem for path in (CONF / "attack").glob("*.yaml"))
PLANTS = [name for name in ATTACKS if name not in ("none", "external")]
MAPS = sorted(path.stem for path in (CONF / "label_map").glob("*.yaml"))
SOURCES = "attack.label_map.sources=[1,2]"
DIRTY = ("attack.ratio=0.1", "attack.ratio_of=train", "attack.eligible=all")


def config(*words: str) -> DictConfig:
    return check_job(read_command(words)).cfg


def refusal(*words: str) -> str | None:
    """The line that a user would read, or None for a command that would run."""
    try:
        check(config(*words))
    except Exception as error:
        return explain(error) or repr(error)
    return None


@pytest.mark.parametrize(
    ("attack", "name"), [*((attack, "all_to_all") for attack in PLANTS), *(("sig", name) for name in MAPS)]
)
def test_a_map_replaces_the_attacks_own_and_nothing_of_that_remains(attack: str, name: str) -> None:
    more = (SOURCES,) if name == "source_specific" else ()
    chosen = OmegaConf.to_container(config(f"attack={attack}", f"label_map={name}", *more).attack, resolve=True)
    wanted = OmegaConf.to_container(OmegaConf.load(CONF / "label_map" / f"{name}.yaml"), resolve=False)
    expected = {"target": 0, "shift": 1, "sources": [1, 2], "seed": 0}
    assert chosen["label_map"] == {key: expected.get(key, value) for key, value in wanted.items()}
    assert chosen["groups"]["poison"]["label_map"] == chosen["label_map"]


@pytest.mark.parametrize("attack", PLANTS)
def test_without_a_choice_each_attack_has_its_own(attack: str) -> None:
    own = {"badnets_all2all": "AllToAll", "sig": "CleanLabel", "lc": "CleanLabel"}.get(attack, "AllToOne")
    assert config(f"attack={attack}").attack.label_map._target_ == f"backdoor.attacks.{own}"


def test_settings_of_the_chosen_map() -> None:
    shifted = config("label_map=all_to_all", "attack.label_map.shift=3")
    assert instantiate(shifted.attack, _convert_="all").label_map.shift == 3
    assert config("label_map=source_specific", "attack.target=4", SOURCES).attack.label_map.target == 4
    back = config("attack=badnets_all2all", "label_map=all_to_one", "attack.target=2")
    assert instantiate(back.attack, _convert_="all").label_map.target == 2


@pytest.mark.parametrize("attack", ["badnets", "blended", "trojan", "lf", "ssba", "wanet_poison_only"])
@pytest.mark.parametrize("name", ["all_to_all", "source_specific"])
def test_dirty_label_attacks_take_every_map(attack: str, name: str) -> None:
    assert refusal(f"attack={attack}", f"label_map={name}", *([SOURCES] if name == "source_specific" else [])) is None


@pytest.mark.parametrize("attack", ["wanet", "inputaware"])
def test_attacks_that_train_the_victim_take_maps_of_all_classes(attack: str) -> None:
    assert refusal(f"attack={attack}", "label_map=all_to_all") is None
    assert "draws a label for each row once" in str(refusal(f"attack={attack}", "label_map=untargeted"))
    for words in (("label_map=clean_label",), ("label_map=source_specific", SOURCES)):
        assert "poisons rows of some classes only" in str(refusal(f"attack={attack}", *words))


@pytest.mark.parametrize("words", [(), DIRTY])
@pytest.mark.parametrize("name", ["all_to_one", "all_to_all", "source_specific"])
def test_images_that_hide_their_own_class_keep_their_label(name: str, words: tuple[str, ...]) -> None:
    line = refusal("attack=lc", f"label_map={name}", *words, *([SOURCES] if name == "source_specific" else []))
    assert line is not None
    assert line.startswith("attack.label_map: Perturbed is made to hide an image's own class")
    assert line.endswith("use label_map=clean_label")


def test_a_clean_label_attack_becomes_a_dirty_label_one_only_if_told() -> None:
    line = refusal("attack=sig", "label_map=all_to_all")
    assert line is not None
    assert "AllToAll has no single target class" in line
    assert "attack.eligible=all attack.ratio_of=train" in line
    assert refusal("attack=sig", "label_map=all_to_all", *DIRTY) is None
    line = refusal("attack=sig", "label_map=source_specific", SOURCES)
    assert line is not None
    assert line.startswith("attack.eligible=target: the label map SourceSpecific poisons only rows of class 1, 2")


REFUSED = {
    "label_map=source_specific": "attack.label_map.sources: required, and no value was given",
    "label_map=source_specific attack.label_map.sources=[]": "attack.label_map.sources=[]: expected at least one",
    "label_map=source_specific attack.label_map.sources=[0]": "attack.label_map.sources=[0]: expected at least one",
    "label_map=source_specific attack.label_map.sources=[10]": "attack.label_map.sources=10: expected a class from 0",
    "label_map=all_to_all attack.label_map.shift=10": "attack.label_map.shift=10: changes no label of 10 classes",
    "label_map=all_to_all attack.eligible=non_target": "attack.eligible=non_target with attack.ratio_of=train: the",
    "label_map=untargeted attack.eligible=non_target": "attack.eligible=non_target with attack.ratio_of=train: the",
    "label_map=clean_label attack.eligible=non_target": "attack.eligible=non_target: the label map CleanLabel",
    "label_map=clean_label attack.target=10": "attack.target=10: expected a class from 0 to 9",
    "label_map=all_to_one attack.target=null": "attack.target=null: this label map needs a target class",
    "attack=none label_map=all_to_all": "label_map: attack=none poisons nothing, so it takes no label map",
    "label_map=all_to_al": "label_map=all_to_al: no such label_map; did you mean 'all_to_all'",
    "label_map=all_to_one attack.label_map.shift=2": "attack.label_map.shift: no such option 'shift'",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_read(words: str) -> None:
    line = refusal_of_command(*words.split())
    assert line is not None
    assert line.startswith(REFUSED[words]), line


def refusal_of_command(*words: str) -> str | None:
    """`refusal`, with the command at hand, whose config names the near matches."""
    command = read_command(words)
    try:
        check(check_job(command).cfg)
    except Exception as error:
        return explain(error, command)
    return None


def test_somebody_elses_poison_may_have_a_known_map() -> None:
    known = instantiate(config("attack=external", "label_map=all_to_all").attack, _convert_="all")
    assert isinstance(known.label_map, AllToAll)
    assert instantiate(config("attack=external", "attack.target=3").attack, _convert_="all").label_map.target == 3


LABELS = torch.arange(10).repeat_interleave(100)


@pytest.mark.parametrize(
    ("label_map", "eligible", "classes"),
    [
        (AllToOne(target=3), "all", range(10)),
        (AllToOne(target=3), "victims", [0, 1, 2, 4, 5, 6, 7, 8, 9]),
        (AllToAll(), "all", range(10)),
        (SourceSpecific(target=3, sources=[1, 2]), "all", [1, 2]),
        (SourceSpecific(target=3, sources=[1, 2]), "non_target", [1, 2]),
        (CleanLabel(target=3), "all", [3]),
    ],
)
def test_the_pool_is_what_the_map_and_the_setting_both_allow(label_map, eligible, classes) -> None:
    group = PoisonGroup(0.05, label_map, eligible=eligible)
    assert LABELS[group.pool(LABELS, 10)].unique().tolist() == list(classes)


def test_the_ratio_is_refused_once_the_labels_are_known() -> None:
    group = PoisonGroup(0.2, CleanLabel(target=3), trigger=Square(size=0.1))
    attack = PoisonOnly(name="test", groups={"poison": group}, label_map=group.label_map, trigger=group.trigger)
    attack.check(10, None)
    with pytest.raises(UserError, match=r"only 100 are eligible; the largest ratio is 0\.1"):
        attack.check(10, None, LABELS)


def test_a_run_with_another_map(command, tmp_path: Path) -> None:
    words = (
        "attack=badnets",
        "label_map=source_specific",
        SOURCES,
        "defense=none",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    status, _, said = command(*QUICK, *words)
    assert status == 0, said
    plan = PoisonPlan.load(tmp_path / "run" / "plan.npz")
    assert plan.labels.eq(0).all()
    assert "asr" in read_json(tmp_path / "run")["final"]
