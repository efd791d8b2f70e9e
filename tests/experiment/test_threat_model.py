"""Nothing that a stage, its module or its callbacks are handed leads to the truth; and curves say nothing wrong."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from backdoor.experiment.monitoring import Curves
from backdoor.report.records import settings
from backdoor.state import Split, Truth
from helpers import spy
from helpers.command import read_json

WORDS = ("model=small_cnn", "model.width=4", "victim.epochs=2", "threads=1", "trainer.precision=fp32")
SPY = """# Looks for the truth.
name: spy
stages:
  look:
    _target_: helpers.spy.SpyStage
  tune:
    _target_: backdoor.stages.Fit
    module: {_target_: helpers.spy.SpyModule, _partial_: true, lr: 0.01}
    model: current
    epochs: 2
    callbacks:
      spy: {_target_: helpers.spy.SpyCallback, _partial_: true}
"""


def epochs(folder, stage="victim"):
    with (folder / "metrics.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["stage"] == stage]


@pytest.mark.parametrize("attack", ["badnets", "inputaware"])
def test_no_reference_leads_to_the_truth(command, tmp_path, attack):
    (tmp_path / "own" / "defense").mkdir(parents=True)
    (tmp_path / "own" / "defense" / "spy.yaml").write_text(SPY)
    spy.SEEN.clear()
    spy.FOUND.clear()
    words = (f"attack={attack}", "defense=spy", f"--config-dir={tmp_path / 'own'}", "trainer.monitor_images=16")
    short = ("trainer.max_batches=1",) if attack == "inputaware" else ()
    status, _, said = command(*words, *WORDS, *short, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    assert spy.SEEN == ["stage", "callback", "module"]
    assert spy.FOUND == []
    assert epochs(tmp_path / "run", "tune")[1]["asr"]  # though every epoch was measured


def test_the_spy_finds_what_it_looks_for():
    hidden = Truth(Split.of(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)))
    spy.FOUND.clear()
    spy.look("test", {"deep": [lambda: hidden]})
    assert len(spy.FOUND) == 1
    spy.FOUND.clear()


def test_a_killed_fit_gets_its_curve_back(tmp_path):
    heard: list[dict] = []

    def curves(watched: str) -> Curves:
        made = Curves(tmp_path, on_row=heard.append, on_stage=lambda name: None, say=print)
        made.watch(lambda model: {"asr": 0.75}, watched)
        made.on_stage("victim", "key")
        return made

    row = {"stage": "victim", "epoch": 1, "loss": 0.5}
    curves("sixteen").on_epoch(row, nn.Identity())
    curves("sixteen").on_resumed(row)  # another process, that goes on
    curves("others").on_resumed(row)
    assert heard == [{**row, "asr": 0.75}, {**row, "asr": 0.75}, row]
    for text in ("", "[[1]]", "{}", "[" * 100_000):  # a damaged curve is no curve
        for path in (tmp_path / "curve").iterdir():
            path.write_text(text)
        curves("sixteen").on_resumed(row)
        assert heard.pop() == row


def test_the_report_counts_runs_that_differ_in_what_they_watch_once():
    config = {"attack": {"name": "badnets"}, "trainer": {"monitor_images": 16, "precision": "fp32"}}
    watched = {**config, "trainer": {"monitor_images": 32, "precision": "fp32"}}
    other = {**config, "trainer": {"monitor_images": 16, "precision": "bf16"}}
    assert settings(config) == settings(watched) != settings(other)


def test_a_curve_counts_only_for_the_images_it_was_measured_on(command, tmp_path):
    """Found in a trial: `trainer.monitor_images=32` showed the curve that 16 images had given."""
    shown = {}
    for name, images in (("first", 16), ("other", 32), ("again", 16)):
        run = f"hydra.run.dir={tmp_path / name}"
        status, out, said = command(
            "defense=none", *WORDS, f"trainer.monitor_images={images}", run, cache=tmp_path / "cache"
        )
        assert status == 0, said
        shown[name] = ([row.get("asr") for row in epochs(tmp_path / name)], "no curve" in out)
        assert read_json(tmp_path / name, "status.json")["victim"] == ("trained" if name == "first" else "hit")
    assert all(shown["first"][0])
    assert shown["other"] == ([None, None], True)
    assert shown["again"] == shown["first"]
