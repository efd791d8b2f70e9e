"""Fits through the real Trainer: freshness, determinism, caps, resuming, errors."""

from __future__ import annotations

import pytest
import torch

from backdoor.errors import UserError
from backdoor.training.context import Hardware
from backdoor.training.module import schedule_factor
from helpers.contexts import fit, same, small_context
from helpers.observing import hearing


def test_training_learns_and_keeps_a_history(tmp_path):
    _, rows = fit(small_context(), tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["acc"] > 0.9 > rows[0]["acc"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["lr"] == pytest.approx(0.0, abs=1e-6)  # the cosine's end


def test_two_fits_both_train_and_agree(tmp_path):
    context = small_context()
    first, second = fit(context, tmp_path)[0], fit(context, tmp_path)[0]
    assert same(first, second)
    assert not same(first, context.make_model().state_dict())


def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path):
    whole, rows = fit(small_context(), tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(row):
        if row["epoch"] == 4:
            raise Killed

    with pytest.raises(Killed), hearing(kill):
        fit(small_context(checkpoint_s=0.0), tmp_path / "killed")
    assert (tmp_path / "killed" / "resume.ckpt").exists()
    torch.rand(3)  # whatever else moved the global generator
    seen = []
    with hearing(lambda row: seen.append(row["epoch"])):
        resumed, again = fit(small_context(), tmp_path / "killed")
    assert same(whole, resumed)
    assert seen == [1, 2, 3, 4, 5, 6]
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in part] for part in (rows, again)]
    assert timeless[0] == timeless[1]
    assert not (tmp_path / "killed" / "resume.ckpt").exists()


def test_caps_of_the_debug_trainer(tmp_path):
    _, rows = fit(small_context(max_epochs=1, max_batches=2), tmp_path)
    assert len(rows) == 1


def test_a_loss_that_is_no_number_stops_with_its_stage(tmp_path):
    with pytest.raises(UserError, match="stage fit: the loss became nan"):
        fit(small_context(), tmp_path, lr=1e30)


def test_hardware_refuses():
    options = {"channels_last": True, "compile": False}
    with pytest.raises(UserError, match=r"trainer\.device=abacus"):
        Hardware.of(device="abacus", precision="fp32", **options)
    with pytest.raises(UserError, match=r"trainer\.precision=bf17: did you mean 'bf16'"):
        Hardware.of(device="cpu", precision="bf17", **options)


@pytest.mark.parametrize(
    ("name", "step", "factor"),
    [
        ("constant", 50, 1.0),
        ("cosine", 0, 1.0),
        ("cosine", 50, 0.5),
        ("cosine", 100, 0.0),
        ("step", 49, 1.0),
        ("step", 50, 0.1),
        ("step", 80, 0.01),
        ("one_cycle", 15, 0.5),
        ("one_cycle", 30, 1.0),
        ("one_cycle", 100, 0.0),
    ],
)
def test_schedules_by_hand(name, step, factor):
    schedule = schedule_factor(name, steps=100, milestones=[0.5, 0.75], gamma=0.1, warmup=0.3)
    assert schedule(step) == pytest.approx(factor, abs=1e-12)


def test_unknown_schedule():
    with pytest.raises(UserError, match="schedule=cosin: did you mean 'cosine'"):
        schedule_factor("cosin", steps=1, milestones=[], gamma=0.1, warmup=0.3)
