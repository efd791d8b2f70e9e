"""What a defense cannot work with: one line that names the stage or the setting, and what was stored stays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from backdoor.defenses.abl import LossGapIsolation
from backdoor.defenses.ac import activation_clusters
from backdoor.defenses.anp.norms import find_norms
from backdoor.defenses.features import FeatureDetector, by_class
from backdoor.defenses.spectral import spectral_signatures
from backdoor.errors import UserError
from backdoor.stages import Fit, Mark
from backdoor.stages.fit import check_trained
from backdoor.state import Split, State
from backdoor.training import Classifier
from helpers.command import QUICK, read_json
from helpers.configs import choices, composed
from helpers.contexts import small_context, small_state
from helpers.surrogate import digits, tiny_cnn

TRUSTING = [name for name in choices("defense") if OmegaConf.select(composed(f"defense={name}"), "defense.reserved")]
FEW = ("data.limit.train=400", "data.limit.test=100", "data.image_size=16")


@pytest.mark.parametrize("defense", TRUSTING)
def test_trusted_rows_are_asked_for_by_their_setting(command, tmp_path, defense):
    status, _, said = command(*QUICK, f"defense={defense}", "reserved=0", cache=tmp_path / "cache")
    assert status == 2
    assert f"error: defense={defense}: stage " in said
    assert "needs reserved, which nothing before it provides; set reserved, for instance reserved=0.05" in said
    assert not list((tmp_path / "cache").glob("victim/*"))


# Words -> the fewest trusted rows that the defense can work with.
NEEDING = {
    "defense=fp": 50,  # 25 held out, half of them
    "defense=fp defense.stages.prune.max_drop=0.1 defense.stages.prune.validation=0.2": 48,
    "defense=anp defense.stages.mask.threshold=null": 69,
    "defense=anp": 2,
    "defense=ft": 1,
}


@pytest.mark.parametrize("words", NEEDING)
def test_too_few_trusted_rows_are_refused_before_anything_trains(command, tmp_path, words):
    least = NEEDING[words]
    asked = [str(least - 1)] if least > 1 else []
    for reserved in (*asked, *(["0.03"] if least > 43 else [])):  # 43 of 1,437, which only the data tell
        status, _, said = command(*QUICK, *words.split(), f"reserved={reserved}", cache=tmp_path / "cache")
        rows = "43" if reserved == "0.03" else reserved
        assert status == 2
        assert f"error: reserved={reserved}: gives {rows} trusted rows, but stage " in said
        assert f"needs at least {least}; set reserved={least} or more" in said
        assert not list((tmp_path / "cache").glob("victim/*"))
    status, _, said = command(*QUICK, *words.split(), f"reserved={least}")
    assert status == 0, said


# Each trained stage of a defense, with a rate at which it diverges.
DIVERGING = {
    "ft": "finetune",
    "fp": "finetune",
    "nad": "distil",
    "abl": "isolate",
    "abl_joint": "joint",
    "fct": "warm",
    "dbr": "repair",
    "dst": "features",
}


@pytest.mark.parametrize("defense", DIVERGING)
def test_training_that_diverges_names_its_stage_and_loses_nothing(command, tmp_path, cache_dir, defense):
    stage, folder = DIVERGING[defense], tmp_path / "run"
    several_steps = f"defense.stages.{stage}.batch_size=8"
    words = (*QUICK, *FEW, "reserved=0.2", f"defense={defense}", f"defense.stages.{stage}.module.lr=1e30")
    status, _, said = command(*words, several_steps, f"hydra.run.dir={folder}")
    assert status == 2, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert errors[0].startswith(f"error: stage {stage}: ")
    assert "lr" in errors[0]
    failed = read_json(folder, "status.json")
    assert failed["state"] == "failed"
    assert f"stage {stage}" in failed["error"]
    assert (folder / "weights" / "victim.safetensors").exists()
    status, _, said = command(*QUICK, *FEW, "reserved=0.2", "defense=none", f"hydra.run.dir={tmp_path / 'next'}")
    assert status == 0, said
    assert read_json(tmp_path / "next", "status.json")["victim"] == "hit"


def test_weights_that_are_no_numbers_after_the_last_step_name_the_stage(tmp_path):
    """The loss is finite before a step and shows what it did only at the next, which the last one does not have."""
    stage = Fit(module=partial(Classifier, lr=1e38, momentum=0.0, weight_decay=1e38), epochs=1, batch_size=60)
    with pytest.raises(UserError, match=r"stage last: \S+ became NaN or Inf: the training has diverged; lower its lr"):
        stage.run(small_state(), small_context(), name="last", work=tmp_path)
    check_trained(small_context().make_model(), "last")


def test_models_without_what_a_defense_masks_hear_which_have_it():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(UserError, match=r"Sequential has no BatchNorm.*choose a model with them"):
        find_norms(model)


def one_row_classes() -> tuple[Tensor, Tensor]:
    """Features (4, 3) of classes with one, no and three rows."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 2, 2])


@pytest.mark.parametrize("detector", [spectral_signatures, activation_clusters])
def test_classes_of_a_row_and_rows_that_are_all_alike_are_left_alone(tmp_path, detector):
    features, labels = one_row_classes()
    found = by_class(features, labels, detector)
    assert torch.isfinite(found.scores).all()
    assert not found.flagged[0]
    alike = by_class(torch.ones(40, 3), torch.arange(40) % 2, detector)
    assert not alike.flagged.any()
    assert not alike.scores.any()
    black = Split.of(torch.zeros(40, 1, 16, 16, dtype=torch.uint8), torch.arange(40) % 10)
    said: list[str] = []
    stage, context = FeatureDetector(score="x", detector=detector), small_context(say=said.append)
    state = stage.run(State(black, 10, model=tiny_cnn()), context, name="detect", work=tmp_path).state
    assert said == ["detect: no row is flagged"]
    assert not state.groups["suspect"].any()


def test_losses_that_are_all_equal_isolate_nothing():
    callback = LossGapIsolation(ratio=0.1)
    callback.passes = [torch.full((30,), 2.3)] * 3
    with pytest.raises(UserError, match=r"stage isolate: all losses are equal.*train it longer"):
        callback.contribute(small_state())


def retrain(suspect: Tensor, work: Path) -> State:
    """`part/retrain` on rows of which some are flagged."""
    stage = Fit(module=partial(Classifier, lr=0.1), rows="kept", epochs=1)
    state = replace(small_state(), groups={"suspect": suspect})
    return stage.run(state, small_context(), name="retrain", work=work).state


def test_nothing_and_everything_flagged(tmp_path):
    """Nothing flagged: the new model is trained on all rows. Everything flagged: there is none to train on."""
    none = torch.zeros(60, dtype=torch.bool)
    plain = Fit(module=partial(Classifier, lr=0.1), rows="all", epochs=1)
    on_all = plain.run(small_state(), small_context(), name="retrain", work=tmp_path / "all").state.model
    model = retrain(none, tmp_path / "none").model
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), on_all.parameters(), strict=True))
    with pytest.raises(UserError, match=r"stage retrain: no row to train on \(rows=kept; .*'suspect': 60"):
        retrain(~none, tmp_path / "every")


@pytest.mark.parametrize("rows", ["suspect", ["suspect", "trusted"], "suspect|trusted"])
def test_groups_without_rows_are_refused(tmp_path, rows):
    """D-BR's and D-ST's groups, where an isolation of one's own flags none."""
    none = torch.zeros(60, dtype=torch.bool)
    state = replace(small_state(), groups={"suspect": none, "trusted": none})
    stage = Fit(module=partial(Classifier, lr=0.1), rows=rows, epochs=1)
    with pytest.raises(UserError, match="stage repair: no row to train on"):
        stage.run(state, small_context(), name="repair", work=tmp_path)


def test_shares_of_few_rows_leave_a_row_in_each_group(tmp_path):
    for count in (2, 5, 30):
        state = replace(digits(count), scores={"fct": torch.arange(count).float()})
        marked = Mark(score="fct", suspect=0.05, trusted=0.2)
        groups = marked.run(state, small_context(), name="split", work=tmp_path).state.groups
        assert groups["suspect"].any()
        assert groups["trusted"].any()
        assert not (groups["suspect"] & groups["trusted"]).any()
    state = replace(digits(1), scores={"fct": torch.ones(1)})
    with pytest.raises(UserError, match="all scores of fct are equal"):
        Mark(score="fct", suspect=0.05, trusted=0.2).run(state, small_context(), name="split", work=tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("defense=dbr ~defense.stages.split", "stage repair needs suspect, trusted"),
        ("defense=dst ~defense.stages.score", "stage split needs fct"),
        ("defense=nad ~defense.stages.teacher", "stage distil needs teacher; add|stage distil needs teacher"),
        ("defense=fp ~defense.stages.prune", "stage finetune needs kept_channels"),
        ("defense=nc ~defense.stages.invert", "stage unlearn needs backdoored"),
        ("defense=anp victim=none", "stage mask needs model"),
    ],
)
def test_a_chain_whose_needs_are_not_met_trains_nothing(command, tmp_path, words, said):
    status, _, line = command(*QUICK, *words.split(), cache=tmp_path / "cache")
    assert status == 2
    assert any(part in line for part in said.split("|")), line
    assert not (tmp_path / "cache" / "victim").exists()
