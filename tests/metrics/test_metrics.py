"""Metrics against hand-computed values, scikit-learn, and themselves on two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from sklearn import metrics as sk
from torch import Tensor
from torch import distributed as dist

from backdoor.metrics import (
    AttackSuccess,
    CleanAccuracy,
    Targeted,
    Untargeted,
    attack_success,
    clean_accuracy,
    defense_effectiveness_rating,
    detection_metrics,
    evaluate_predictions,
    robust_improvement_rating,
)

NAN = float("nan")


NEXT = Targeted((torch.arange(5) + 1) % 5)


def random_case(rows: int = 101, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and true labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def test_clean_accuracy_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    pred = torch.tensor([0, 1, 1, 2, 0])
    assert clean_accuracy(pred, labels) == {"c_acc": 3 / 5}
    assert clean_accuracy(pred, labels, target=0) == {"c_acc": 3 / 5, "c_acc_non_target": 2 / 3}
    only_target = clean_accuracy(pred[:2], labels[:2], target=0)
    assert only_target == {"c_acc": 1 / 2}, "no row of another class: absent, not 0"


def test_attack_success_by_hand() -> None:
    pred, original = torch.tensor([0, 0, 2, 1, 3]), torch.tensor([1, 2, 2, 1, 1])
    assert attack_success(pred, original, Targeted.at(0, 4)) == {"asr": 2 / 5, "r_acc": 2 / 5}
    assert attack_success(pred, original, Targeted(torch.tensor([1, 3, 0, 0]))) == {"asr": 2 / 5, "r_acc": 2 / 5}
    assert attack_success(pred, original, Untargeted()) == {"asr": 3 / 5, "r_acc": 2 / 5}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (torch.tensor([0, 2]), "expected classes from 0 to 1"),
        (torch.zeros(2), r"expected int64 \(K,\)"),
        (torch.zeros(0, dtype=torch.int64), r"expected int64 \(K,\)"),
    ],
)
def test_a_goal_outside_of_the_classes_is_refused(table: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Targeted(table)
    with pytest.raises(ValueError, match="original: expected classes from 0 to 1, got 0 to 5"):
        Targeted.at(0, 2).hit(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 5]))


def test_evaluation_agrees_with_sklearn() -> None:
    logits, labels = random_case()
    pred = logits.argmax(1)
    result = evaluate_predictions(logits, labels, attacked=logits, original=labels, goal=NEXT, target=2)
    other = labels != 2
    assert result["c_acc"] == pytest.approx(sk.accuracy_score(labels, pred))
    assert result["c_acc_non_target"] == pytest.approx(sk.accuracy_score(labels[other], pred[other]))
    assert result["asr"] == pytest.approx(sk.accuracy_score((labels + 1) % 5, pred))
    assert result["r_acc"] == result["c_acc"]
    assert set(evaluate_predictions(pred, labels)) == {"c_acc"}
    with pytest.raises(ValueError, match="all or none"):
        evaluate_predictions(logits, labels, attacked=logits)


@pytest.mark.parametrize("seed", range(5))
def test_asr_and_r_acc_share_one_whole(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    original, logits = torch.randint(5, (60,), generator=generator), torch.randn(60, 5, generator=generator)
    result = attack_success(logits, original, NEXT)
    assert 0 < result["asr"] + result["r_acc"] < 1
    any_other = attack_success(logits, original, Untargeted())
    assert any_other["asr"] + any_other["r_acc"] == 1
    assert any_other["r_acc"] == result["r_acc"]


@pytest.mark.parametrize(
    ("pred", "labels", "said"),
    [
        (torch.tensor([[0.0, NAN]]), torch.tensor([1]), "NaN logits in 1 of 1"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one row"),
        (torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.int64), "got torch.float32"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "expected float logits"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"shape \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2), "expected integers"),
    ],
)
def test_bad_predictions_are_refused(pred: Tensor, labels: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        clean_accuracy(pred, labels)
    with pytest.raises(ValueError, match=said):
        attack_success(pred, labels, Untargeted())


@pytest.mark.parametrize("batch", [1, 16, 101])
def test_batches_give_the_same_as_the_whole(batch: int) -> None:
    logits, labels = random_case()
    clean, attack = CleanAccuracy(target=1), AttackSuccess(NEXT)
    for start in range(0, 101, batch):
        rows = slice(start, start + batch)
        clean.update(logits[rows], labels[rows])
        attack.update(logits[rows], labels[rows])
    clean.update(logits[:0], labels[:0])
    assert clean.compute() == clean_accuracy(logits, labels, target=1)
    assert attack.compute() == attack_success(logits, labels, NEXT)
    attack.reset()
    with pytest.raises(ValueError, match="at least one row"):
        attack.compute()


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    logits, labels = random_case()
    clean, attack = CleanAccuracy(target=1), AttackSuccess(NEXT)
    rows = torch.arange(rank, 101, 2)
    clean.update(logits[rows], labels[rows])
    attack.update(logits[rows], labels[rows])
    values = clean.compute() | attack.compute()
    clean.sync()
    seen = {"rows": int(clean.counts[1]), "own": len(rows)}
    torch.save({**values, **seen}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_count_each_row_once(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    logits, labels = random_case()
    whole = clean_accuracy(logits, labels, 1) | attack_success(logits, labels, NEXT)
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [values.pop("own") for values in found] == [51, 50]
    assert found == [whole | {"rows": 101}] * 2


def test_ratings_by_hand() -> None:
    assert defense_effectiveness_rating(0.9, 1.0, 0.9, 0.0) == 1.0
    assert defense_effectiveness_rating(0.9, 1.0, 0.8, 0.2) == pytest.approx(0.85)
    assert defense_effectiveness_rating(0.9, 0.5, 0.95, 0.9) == 0.5, "a gain in C-Acc or ASR counts nothing"
    assert defense_effectiveness_rating(1.0, 0.0, 0.0, 0.0) == 0.0
    assert robust_improvement_rating(0.9, 0.0, 0.8, 0.7) == pytest.approx(0.8)
    assert robust_improvement_rating(0.9, 0.5, 0.9, 0.1) == 0.5
    for bad in (90.0, -0.1, NAN):
        with pytest.raises(ValueError, match="c_acc_after: expected a fraction"):
            defense_effectiveness_rating(0.9, 1.0, bad, 0.0)
        with pytest.raises(ValueError, match="r_acc_before: expected a fraction"):
            robust_improvement_rating(0.9, bad, 0.9, 0.0)


def test_detection_by_hand() -> None:
    flagged = torch.tensor([True, True, False, False, True])
    poisoned = torch.tensor([True, False, True, False, True])
    assert detection_metrics(flagged, None, poisoned) == {
        "poisoned": 3,
        "flagged": 3,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "fpr": 1 / 2,
        "f1": 2 / 3,
    }


@pytest.mark.parametrize("kind", ["plain", "ties", "constant", "large", "negative", "infinite"])
def test_detection_agrees_with_sklearn(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    poisoned = torch.rand(2001, generator=generator) < 0.1
    scores = torch.randn(2001, generator=generator) + poisoned.float()
    scores = {
        "plain": scores,
        "ties": (scores * 2).round(),
        "constant": torch.full_like(scores, 3.0),
        # A sigmoid, as torchmetrics takes of values outside [0, 1], would make these all equal to 1.
        "large": scores + 200,
        "negative": -(scores.exp()),
        "infinite": torch.where(scores > 2, float("inf"), scores),
    }[kind]
    flagged = scores > 1
    found = detection_metrics(flagged, scores, poisoned)
    truth, chosen = poisoned.numpy(), flagged.numpy()
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores.clamp(max=1e6)), abs=1e-5)
    assert found["recall"] == pytest.approx(sk.recall_score(truth, chosen))
    assert found.get("precision", 0) == pytest.approx(sk.precision_score(truth, chosen, zero_division=0))
    assert found["f1"] == pytest.approx(sk.f1_score(truth, chosen))
    assert found["fpr"] == pytest.approx(chosen[~truth].mean())
    assert (found["flagged"], found["poisoned"]) == (chosen.sum(), truth.sum())


def test_what_cannot_be_known_is_absent() -> None:
    scores, none, every = torch.rand(9), torch.zeros(9, dtype=torch.bool), torch.ones(9, dtype=torch.bool)
    assert detection_metrics(none, scores, none) == {"poisoned": 0, "flagged": 0, "fpr": 0.0}
    assert detection_metrics(every, scores, none) == {
        "poisoned": 0,
        "flagged": 9,
        "fpr": 1.0,
    }
    assert set(detection_metrics(every, scores, every)) == {
        "poisoned",
        "flagged",
        "precision",
        "recall",
        "f1",
    }
    assert detection_metrics(None, None, every) == {"poisoned": 9}


def test_detection_refuses_bad_input() -> None:
    scores, mask = torch.rand(9), torch.arange(9) < 4
    with pytest.raises(ValueError, match="scores: expected no NaN, got 1 of 9"):
        detection_metrics(mask, scores.index_fill(0, torch.tensor([2]), NAN), mask)
    with pytest.raises(ValueError, match=r"flagged: expected bool \(9,\)"):
        detection_metrics(mask[:5], None, mask)
    with pytest.raises(ValueError, match="flagged: expected bool"):
        detection_metrics(mask.long(), None, mask)
    with pytest.raises(ValueError, match="scores: expected float"):
        detection_metrics(None, scores[:, None], mask)
    with pytest.raises(ValueError, match="poisoned: expected bool"):
        detection_metrics(None, None, mask[:0])
