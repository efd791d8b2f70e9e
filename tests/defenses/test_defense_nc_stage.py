"""Neural Cleanse: verdicts, what is saved, unlearning, and whole runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from backdoor.data.loader import Batch
from backdoor.defenses.nc import (
    Invert,
    Search,
    TriggerUnlearning,
    draw_triggers,
    reverse_triggers,
    stamp,
    stamp_share,
)
from backdoor.errors import UserError
from backdoor.stages import Fit
from backdoor.stages.artifact import load_outcome, save_outcome
from backdoor.state import State
from helpers.command import QUICK, read_json
from helpers.contexts import small_context
from helpers.surrogate import NearestMean, digits, tiny_cnn

QUICK_SEARCH = {"epochs": 40, "batch_size": 20}
FAR = 4.0  # a linear model's norms lie closer together than a network's: a clean class may come to 2.5


class Backdoored(NearestMean):
    """Two white pixels in the corner, which no digit has, outvote the digit."""

    target = 3

    def forward(self, images):
        corner = images[:, 0, -1, -2:].sum(1) * 40
        return 4 * super().forward(images) + corner[:, None] * F.one_hot(torch.tensor(self.target), 10)


@pytest.fixture(scope="module")
def known() -> State:
    """A defender with 60 trusted digits."""
    state = digits(300)
    return replace(state, reserved=state.train.take(torch.arange(60)))


@pytest.fixture(scope="module")
def judged(known):
    """The verdict on a backdoored model, and what was said."""
    said: list[str] = []
    state = replace(known, model=Backdoored(known))
    return Invert(**QUICK_SEARCH, threshold=FAR).run(
        state, small_context(say=said.append), name="invert", work=None
    ), said


def test_what_is_kept_works_and_is_what_it_says(known):
    model, images = Backdoored(known).requires_grad_(False), known.reserved.images
    found = reverse_triggers(model, images, torch.arange(10), Search(**QUICK_SEARCH), seed=0)
    torch.testing.assert_close(found.norms, found.masks.sum((1, 2, 3)))
    for label in range(10):
        stamped = stamp(images.float() / 255, found.masks[label], found.patterns[label])
        rate = (model(stamped).argmax(1) == label).float().mean()
        assert rate == found.success[label] >= 0.98


def test_the_backdoor_is_found_and_said(judged, tmp_path):
    outcome, said = judged
    found = outcome.state.findings
    assert (found["backdoored"], found["flagged_classes"]) == (1, [3])
    assert found["norms"][3] < 0.5 * found["norms"].median()
    assert found["masks"][3, 0, -1, -2:].max() > 0.5  # where the trigger is
    assert said[0] == f"backdoored: yes, class 3 (anomaly index {found['anomaly_index']:.1f})"
    assert set(found) == Invert.provides
    stage = Invert()
    (path,) = stage.figures(outcome.state, tmp_path, "invert", {})
    with Image.open(path) as picture:
        assert min(picture.size) > 100


def test_a_clean_model_is_let_go_and_stays_as_it_is(known):
    said: list[str] = []
    model = NearestMean(known)
    outcome = Invert(**QUICK_SEARCH, threshold=FAR).run(
        replace(known, model=model), small_context(say=said.append), name="invert", work=None
    )
    assert outcome.state.findings["backdoored"] == 0
    assert said[0].startswith("backdoored: no (largest anomaly index of a small trigger")
    assert outcome.state.model is model
    assert model.weight.requires_grad


def test_a_search_that_ended_early_says_so(known, judged):
    said: list[str] = []
    state = replace(known, model=Backdoored(known))
    Invert(epochs=2, batch_size=20).run(state, small_context(say=said.append), name="invert", work=None)
    assert "the search ended early" in said[-1]
    assert "more passes (epochs) or steps (a smaller batch_size)" in said[-1]
    assert not any("ended early" in line for line in judged[1])


def test_two_classes_get_no_verdict_and_hear_why(known):
    said: list[str] = []
    few = State(known.train, 2, known.reserved, nn.Sequential(nn.Flatten(), nn.Linear(256, 2)))
    outcome = Invert(epochs=2).run(few, small_context(say=said.append), name="invert", work=None)
    assert outcome.state.findings["backdoored"] == 0
    assert "2 classes are too few" in said[1]


def test_saved_findings_are_the_same(judged, tmp_path):
    outcome, _ = judged
    save_outcome(outcome, Invert.provides, tmp_path, seconds=1.0)
    loaded, _ = load_outcome(replace(outcome.state, findings={}), tmp_path, small_context(), Invert.provides)
    for name, value in outcome.state.findings.items():
        again = loaded.state.findings[name]
        assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 7)), r"logits \(B, 10\), got \(1, 7\)"),
        (nn.Conv2d(1, 10, 3), r"logits \(B, 10\), got \(1, 10, 14, 14\)"),
        (nn.Sequential(nn.Flatten(), nn.Threshold(2.0, float("nan")), nn.Linear(256, 10)), "the loss became nan"),
    ],
)
def test_models_that_do_not_fit_are_refused(known, model, said):
    with pytest.raises(UserError, match=f"stage invert: .*{said}"):
        Invert(epochs=1).run(replace(known, model=model), small_context(), name="invert", work=None)


def test_a_model_without_gradients_is_refused(known):
    class Rounds(NearestMean):
        def forward(self, images):
            return super().forward(images.round().detach())

    with pytest.raises(UserError, match=r"stage invert: .*differentiated by its images"):
        Invert(epochs=1).run(replace(known, model=Rounds(known)), small_context(), name="invert", work=None)


def test_a_share_of_the_batch_is_stamped_in_turns():
    images = torch.zeros(10, 1, 1, 2)
    masks, patterns = torch.ones(2, 1, 1, 2), torch.tensor([0.25, 0.5]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    found = stamp_share(images, masks, patterns, 0.3)
    assert found[:, 0, 0, 0].tolist() == [0.25, 0.5, 0.25] + [0.0] * 7
    assert images.sum() == 0
    assert stamp_share(images[:2], masks, patterns, 0.2)[:, 0, 0, 0].tolist() == [0.25, 0.0]  # one at least


def test_unlearning_trains_on_stamped_rows_under_their_true_labels(judged, monkeypatch):
    state = judged[0].state
    module = TriggerUnlearning(model=NearestMean(state), state=state, lr=0.1, ratio=0.5)
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)  # there is no Trainer here
    images, labels = state.reserved.images[:4].float() / 255, state.reserved.labels[:4]
    stamped = stamp(images[:2], state.findings["masks"][3], state.findings["patterns"][3])
    expected = F.cross_entropy(module.model(torch.cat([stamped, images[2:]])), labels)
    assert module.training_step(Batch(images, labels, torch.arange(4)), 0).item() == pytest.approx(expected.item())


def unlearning(**module) -> Fit:
    options = {"lr": 0.01, "ratio": 0.2, **module}
    return Fit(
        module=lambda **given: TriggerUnlearning(**options, **given),
        model="current",
        rows="reserved",
        requires=["masks", "patterns", "flagged_classes"],
        when="backdoored",
        epochs=2,
    )


def test_unlearning_moves_a_flagged_model_alone(judged, tmp_path):
    stage, state = unlearning(), judged[0].state
    assert {"reserved", "model", "backdoored", "masks"} <= stage.requires
    state = replace(state, model=tiny_cnn())
    moved = stage.run(state, small_context(), name="unlearn", work=tmp_path)
    assert len(moved.history) == 2
    before, after = state.model.state_dict(), moved.state.model.state_dict()
    assert not torch.equal(before["head.weight"], after["head.weight"])
    cleared = replace(state, findings={**state.findings, "backdoored": 0, "flagged_classes": []})
    kept = stage.run(cleared, small_context(), name="unlearn", work=tmp_path)
    assert kept.history == []
    save_outcome(kept, stage.provides, tmp_path, seconds=1.0)
    loaded, _ = load_outcome(cleared, tmp_path, replace(small_context(), new_model=tiny_cnn), stage.provides)
    images = torch.rand(4, 1, 16, 16)
    assert torch.equal(loaded.state.model(images), tiny_cnn()(images))


def test_bad_unlearning_is_refused():
    for ratio in (0, 1.5, "all"):
        with pytest.raises(UserError, match=f"ratio={ratio}: expected a share"):
            unlearning(ratio=ratio)
    with pytest.raises(UserError, match="when=backdoored: expected model=current"):
        Fit(module=unlearning().module, model="fresh", when="backdoored", epochs=1)


def test_the_verdict_is_in_the_record(command, tmp_path):
    words = ("defense=nc", "data.limit.train=200", "data.limit.test=50", f"hydra.run.dir={tmp_path / 'run'}")
    status, out, said = command(*QUICK, *words)
    assert status == 0, said
    assert "backdoored: " in out
    assert "anomaly_index" in next(line for line in out.splitlines() if line.startswith("invert "))
    invert = read_json(tmp_path / "run")["stages"][1]
    assert invert["findings"].keys() == {"backdoored", "anomaly_index"}
    assert (tmp_path / "run" / "figures" / "invert_triggers.png").exists()


def test_without_trusted_rows_it_is_refused(command, tmp_path):
    status, _, said = command(*QUICK, "defense=nc", "reserved=0", f"hydra.run.dir={tmp_path / 'run'}")
    assert status != 0
    assert "stage invert needs reserved" in said


def test_the_figure_takes_colour_and_many_classes(tmp_path):
    masks, patterns = torch.rand(7, 1, 6, 9), torch.rand(7, 3, 6, 9)
    path = draw_triggers(masks, patterns, torch.ones(7), torch.ones(7), [2, 5], path=tmp_path / "found.png")
    assert path.stat().st_size > 1000
