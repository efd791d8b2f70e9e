"""Several poison groups: each trigger is measured, and none is hidden by the first; rows that nobody poisoned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from backdoor.attacks import AllToOne, PoisonGroup, PoisonOnly
from backdoor.errors import UserError
from backdoor.metrics import defense_effectiveness_rating, detection_metrics
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
    assert "second" in out
    assert "worst" in out
    assert (tmp_path / "run" / "figures" / "trigger_second.png").exists()
    assert "asr/second" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]


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
