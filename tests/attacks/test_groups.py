"""Several poison groups: each trigger is measured, and none is hidden by the first; rows that nobody poisoned."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from backdoor.attacks import AllToAll, AllToOne, PoisonGroup, PoisonOnly, RandomLabel, SourceSpecific
from backdoor.attacks.poison_only import attack_set
from backdoor.errors import UserError
from backdoor.metrics import defense_effectiveness_rating, detection_metrics
from backdoor.state import Split
from backdoor.triggers import Square
from helpers.attack import CIFAR_LABELS, attack
from helpers.command import QUICK, read_json
from helpers.configs import choices, composed, words_for

SECOND = (
    "+attack.groups.second={_target_:backdoor.attacks.PoisonGroup,ratio:0.1,"
    "trigger:{_target_:backdoor.triggers.Square,size:4,anchor:top_left},"
    "label_map:{_target_:backdoor.attacks.AllToOne,target:3}}"
)


def test_each_groups_trigger_is_measured_and_shown(command, tmp_path):
    words = ("trainer.max_batches=null", "victim.epochs=3", "trainer.max_epochs=3", "trainer.monitor_images=16")
    status, out, said = command(*QUICK, *words, "attack=badnets", SECOND, "defense=ft", "hydra.run.dir=run")
    assert status == 0, said
    result = read_json(tmp_path / "run")
    victim, tuned = (next(s for s in result["stages"] if s["name"] == name) for name in ("victim", "finetune"))
    for entry in (victim, tuned):
        assert {"asr", "r_acc", "asr/second", "r_acc/second", "asr_worst"} <= set(entry)
        assert entry["asr_worst"] == max(entry["asr"], entry["asr/second"])
    rates = [value for entry in (victim, tuned) for value in (entry["c_acc"], entry["asr_worst"])]
    assert tuned["der"] == defense_effectiveness_rating(*rates)
    assert result["attacks"] == [
        {"name": "poison", "metric": "asr", "goal": "targeted", "images": 324},
        {"name": "second", "metric": "asr/second", "goal": "targeted", "images": 323},
    ]
    assert "second" in out
    assert "worst" in out
    assert (tmp_path / "run" / "figures" / "trigger_second.png").exists()
    assert "asr/second" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]


def test_any_wrong_answer_is_a_success_of_an_untargeted_attack(command, tmp_path):
    short = ("model=small_cnn", "model.width=8", "data.image_size=16", "threads=1", "trainer.precision=fp32")
    words = ("attack=blended", "attack.ratio=0.3", "label_map=untargeted", "defense=none", "trainer.monitor_images=32")
    status, out, said = command(*short, *words, "hydra.run.dir=run")
    assert status == 0, said
    result = read_json(tmp_path / "run")
    assert result["attacks"] == [{"name": "poison", "metric": "asr", "goal": "untargeted", "images": 360}]
    (victim,) = result["stages"]
    assert victim["asr"] > 0.3 > 1 - victim["c_acc"]
    assert victim["asr"] + victim["r_acc"] == pytest.approx(1)
    assert "c_acc_non_target" not in victim
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [float(row["asr"]) + float(row["r_acc"]) for row in rows] == pytest.approx([1] * len(rows))
    assert "ASR" in out


def test_groups_of_several_kinds_are_each_measured_by_their_own_goal():
    """A source-specific group, one of all classes by another trigger, and an untargeted one."""
    first = attack(label_map=SourceSpecific(target=0, sources=[1, 2]))
    group = first.groups["poison"]
    groups = {
        "poison": group,
        "shifted": PoisonGroup(0.1, AllToAll(shift=2), Square(size=4)),
        "random": PoisonGroup(0.1, RandomLabel(seed=1), Square(size=6)),
        "random_again": PoisonGroup(0.1, RandomLabel(seed=2), Square(size=6)),
    }
    several = PoisonOnly(name="several", groups=groups, label_map=group.label_map, trigger=first.trigger)
    labels = torch.arange(10).repeat(3)
    test = Split.of(torch.zeros(30, 3, 32, 32, dtype=torch.uint8), labels)
    made = {name: attack_set(test, 10, aim) for name, aim in several.aims(10).items()}
    assert {name: (one.goal.kind, len(one.split)) for name, one in made.items()} == {
        "poison": ("targeted", 6),
        "shifted": ("targeted", 30),
        "random": ("untargeted", 30),
    }
    assert made["poison"].as_wanted().labels.eq(0).all()
    assert torch.equal(made["shifted"].as_wanted().labels, (labels + 2) % 10)
    assert torch.equal(made["random"].as_wanted().labels, labels)


@pytest.mark.parametrize("name", [name for name in choices("attack") if name not in ("none", "external")])
def test_each_attack_of_the_package_has_one_aim(name):
    made = instantiate(composed(f"attack={name}", *words_for(f"attack={name}", None)).attack, _convert_="all")
    assert list(made.aims(10)) == ["poison"]


def test_groups_differ_by_trigger_or_label_map_and_covers_are_none():
    first = attack()
    group = first.groups["poison"]
    to_three, square = AllToOne(target=3), Square(size=4)
    groups = {
        "poison": group,
        "again": PoisonGroup(0.1, AllToOne(target=0), group.trigger),
        "other_class": PoisonGroup(0.1, to_three, group.trigger),
        "other_trigger": PoisonGroup(0.1, group.label_map, square),
        "noise": PoisonGroup(0.1, to_three, square, cover=True),
        "labels_alone": PoisonGroup(0.1, to_three),
    }
    several = PoisonOnly(name="several", groups=groups, label_map=first.label_map, trigger=first.trigger)
    assert list(several.aims(10)) == ["poison", "other_class", "other_trigger"]


@pytest.mark.parametrize("ratio", [0, 0.000001])
def test_a_ratio_that_gives_no_row_is_refused(ratio):
    with pytest.raises(UserError, match=r"gives no poisoned row .*attack=none"):
        attack(ratio).plan(CIFAR_LABELS, 10, seed=0)


def test_without_poison_only_false_alarms_are_known():
    flagged, none = torch.tensor([True, False, False, False]), torch.zeros(4, dtype=torch.bool)
    found = detection_metrics(flagged, torch.rand(4), none)
    assert found == {"poisoned": 0, "flagged": 1, "fpr": 0.25}


def test_rows_known_to_be_poisoned_count_as_the_users_own_data_do(command, tmp_path):
    """The same rows, whether trusted ones were set aside before or not."""
    np.savez(tmp_path / "rows.npz", rows=np.arange(1000, 1437))
    words = (*QUICK, "attack=external", f"attack.poisoned_rows={tmp_path / 'rows.npz'}", "defense=abl", "reserved=0.5")
    status, _, said = command(*words, "hydra.run.dir=run")
    assert status == 0, said
    found = next(s for s in read_json(tmp_path / "run")["stages"] if s["name"] == "isolate")["detection"]
    assert 150 < found["poisoned"] < 290  # about half of 437; none is past the end
    np.savez(tmp_path / "rows.npz", rows=np.arange(10), total=np.array(700))
    status, _, said = command(*words, "hydra.run.dir=other")
    assert status == 2
    assert f"attack.poisoned_rows={tmp_path / 'rows.npz'}: counts in 700 train rows, but these data have 1437" in said
