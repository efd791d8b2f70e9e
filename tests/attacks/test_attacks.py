"""Label maps, groups, plans: counts, pools, goals, and what is refused."""

from __future__ import annotations

import pytest
import torch

from backdoor.attacks import (
    AllToAll,
    AllToOne,
    CleanLabel,
    External,
    PoisonGroup,
    PoisonOnly,
    PoisonPlan,
    RandomLabel,
    SourceSpecific,
)
from backdoor.errors import UserError
from backdoor.state import Split
from backdoor.triggers import Patch
from helpers.attack import CIFAR_LABELS, GRID, attack


@pytest.mark.parametrize(
    ("ratio_of", "eligible", "count"),
    [("train", "all", 5000), ("eligible", "non_target", 4500), ("class", "target", 500), ("train", "non_target", 5000)],
)
def test_counts_by_pool(ratio_of, eligible, count):
    plan = attack(ratio_of=ratio_of, eligible=eligible).plan(CIFAR_LABELS, 10, seed=0)
    assert len(plan.rows) == count == len(plan.rows.unique())
    drawn = CIFAR_LABELS[plan.rows]
    if eligible == "all":
        assert 400 < int((drawn == 0).sum()) < 600  # the target class has its share
    else:
        assert bool(((drawn == 0) == (eligible == "target")).all())


def test_clean_label_touches_only_the_target_class_and_no_label():
    label_map = CleanLabel(target=3)
    plan = attack(0.5, "class", "target", label_map).plan(CIFAR_LABELS, 10, seed=0)
    assert len(plan.rows) == 2500
    assert torch.equal(plan.labels, CIFAR_LABELS[plan.rows])
    assert set(plan.labels.tolist()) == {3}


def test_clean_label_ratio_over_the_class_share_says_the_largest():
    with pytest.raises(UserError, match=r"attack\.ratio=0\.2 of train.*10000.*5000.*largest ratio is 0\.1$"):
        attack(0.2, "train", "target", CleanLabel(target=0)).plan(CIFAR_LABELS, 10, seed=0)


@pytest.mark.parametrize("ratio", [-0.1, 1.5, "much", True])
def test_bad_ratio(ratio):
    with pytest.raises(UserError, match=r"attack\.ratio=.*from 0 to 1"):
        PoisonGroup(ratio, AllToOne(target=0))


def test_bad_choices_name_the_near_one():
    with pytest.raises(UserError, match="did you mean 'train'"):
        PoisonGroup(0.1, AllToOne(target=0), ratio_of="trian")
    with pytest.raises(UserError, match="no single target"):
        PoisonGroup(0.1, AllToAll(), eligible="target")


@pytest.mark.parametrize(
    ("label_map", "goal", "victims"),
    [
        (AllToOne(target=1), [1, 1, 1, 1], [True, False, True, True]),
        (AllToAll(shift=1), [1, 2, 3, 0], [True, True, True, True]),
        (SourceSpecific(target=0, sources=[2]), [0, 1, 0, 3], [False, False, True, False]),
        (CleanLabel(target=1), [1, 1, 1, 1], [True, False, True, True]),
    ],
)
def test_label_maps_by_hand(label_map, goal, victims):
    labels = torch.arange(4)
    assert label_map.goal(4).wanted(labels).tolist() == goal
    assert label_map.victims(labels, 4).tolist() == victims
    measured = labels[label_map.victims(labels, 4)]
    assert not label_map.goal(4).hit(measured, measured).any()  # the right answer is never a success


def test_random_labels_are_drawn_once_and_any_wrong_answer_is_a_success():
    labels = torch.arange(10).repeat(500)
    drawn = RandomLabel(seed=1).poisoned(labels, 10)
    assert torch.equal(drawn, RandomLabel(seed=1).poisoned(labels, 10))
    assert not torch.equal(drawn, RandomLabel(seed=2).poisoned(labels, 10))
    assert not drawn.eq(labels).any()
    shares = torch.stack([drawn[labels == own].bincount(minlength=10) for own in range(10)]) / 500
    assert shares.fill_diagonal_(1 / 9).sub(1 / 9).abs().max() < 0.06  # uniform over the nine others
    assert 0.06 < RandomLabel(seed=1, own_class=True).poisoned(labels, 10).eq(labels).float().mean() < 0.14
    goal = RandomLabel().goal(10)
    assert goal.hit(torch.tensor([3, 4]), torch.tensor([3, 3])).tolist() == [False, True]
    assert goal.wanted(labels) is None
    assert RandomLabel().victims(labels, 10).all()
    with pytest.raises(UserError, match="needs another class"):
        RandomLabel().check(1)


@pytest.mark.parametrize(
    "label_map", [AllToOne(target=10), AllToOne(target=-1), AllToAll(shift=20), SourceSpecific(target=1, sources=[1])]
)
def test_label_map_outside_the_classes(label_map):
    with pytest.raises(UserError, match=r"attack\."):
        label_map.check(10)


def random_split(count=100, classes=10, size=32) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Split.of(images, torch.arange(count) % classes)


def test_poison_changes_just_the_planned_rows():
    split, poisoner = random_split(), attack(0.2)
    before = split.images.clone()
    plan = poisoner.plan(split.labels, 10, seed=1)
    after = poisoner.poison(split, plan)
    mask = plan.mask()
    assert int(mask.sum()) == 20
    assert torch.equal(after.images[~mask], before[~mask])
    assert torch.equal(after.labels[~mask], split.labels[~mask])
    assert after.labels[mask].eq(0).all()
    grid = torch.tensor(GRID, dtype=torch.uint8)
    assert torch.equal(after.images[mask][:, :, 29:, 29:], grid.expand(20, 3, 3, 3))
    assert torch.equal(after.images[mask][:, :, :29], before[mask][:, :, :29])


def test_same_seed_same_rows_other_seed_other_rows():
    poisoner = attack()
    first, again, other = (poisoner.plan(CIFAR_LABELS, 10, seed=seed).rows for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_groups_never_share_a_row():
    label_map = AllToOne(target=0)
    groups = {name: PoisonGroup(0.4, label_map) for name in ("poison", "cover")}
    plan = PoisonOnly(name="two", groups=groups).plan(CIFAR_LABELS, 10, seed=0)
    assert len(plan.rows.unique()) == 40_000
    assert plan.roles == ("poison", "cover")
    with pytest.raises(UserError, match="only 30000 are eligible"):
        PoisonOnly(
            name="three",
            groups={
                **groups,
                "third": PoisonGroup(0.7, label_map),
            }
            | {"cover": PoisonGroup(0.0, label_map, cover=True)},
        ).plan(CIFAR_LABELS, 10, seed=0)


def test_asr_set_leaves_out_the_target_and_keeps_the_truth():
    test = random_split(1000)
    made = attack().attack_set(test, 10)
    triggered = made.split
    assert len(triggered) == 900  # 9,000 of CIFAR-10's 10,000
    assert made.goal.wanted(triggered.labels).eq(0).all()
    assert torch.equal(triggered.labels, test.labels[triggered.index])
    assert not triggered.labels.eq(0).any()
    assert torch.equal(triggered.images[:, :, :29], test.images[triggered.index][:, :, :29])
    assert len(attack(label_map=AllToAll()).attack_set(test, 10).split) == 1000


def test_plan_round_trip(tmp_path):
    plan = attack().plan(CIFAR_LABELS, 10, seed=0)
    plan.save(tmp_path / "plan.npz")
    loaded = PoisonPlan.load(tmp_path / "plan.npz")
    assert torch.equal(loaded.rows, plan.rows)
    assert torch.equal(loaded.labels, plan.labels)
    assert (loaded.roles, loaded.total) == (("poison",), 50_000)
    assert not list(tmp_path.glob("*.tmp"))


def test_external_refuses_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(UserError, match=r"attack\.model=.*no such file"):
        External(model=str(tmp_path / "no.pt"))
    with pytest.raises(UserError, match=r"attack\.target"):
        External(trigger=Patch(pattern=GRID))
