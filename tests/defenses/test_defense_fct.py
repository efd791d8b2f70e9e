"""FCT and D-BR: check values of the card, transforms against a slow version, ranks, and passes that do not mix."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as VF

from backdoor.data.loader import Batch, ResidentLoader
from backdoor.defenses.dbr import UnlearnRelearn
from backdoor.defenses.fct import CentreSpreading, FeatureConsistency, centre_similarity, feature_change, transformed
from backdoor.errors import UserError
from backdoor.stages import Fit, Mark
from backdoor.state import Split, State
from backdoor.training import Classifier
from helpers.contexts import same, small_context
from helpers.surrogate import digits, tiny_cnn


def test_similarity_of_centres_has_the_cards_values():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    alike = torch.ones(6, 4)
    assert float(centre_similarity(alike, labels, 5)) == pytest.approx(2 / 3)
    apart = torch.eye(3).repeat_interleave(2, 0)
    assert float(centre_similarity(apart, labels, 5)) == pytest.approx(0)


def test_similarity_against_loops():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 7, generator=generator), torch.randint(0, 4, (30,), generator=generator)
    centres = [features[labels == label].mean(0) for label in labels.unique()]
    total = sum(
        float(F.cosine_similarity(a, b, dim=0)) for i, a in enumerate(centres) for j, b in enumerate(centres) if i != j
    )
    assert float(centre_similarity(features, labels, 9)) == pytest.approx(total / len(centres) ** 2, rel=1e-5)
    features.requires_grad_()
    centre_similarity(features, labels, 9).backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_transforms_are_torchvisions(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, *size, generator=generator)
    draws = torch.rand(6, 3, generator=generator)
    found = transformed(images, draws, ["rotate", "affine"], angle=180, shift=0.2)
    for image, draw, mine in zip(images, draws.tolist(), found, strict=True):
        degrees = (2 * draw[0] - 1) * 180
        moved = [round((2 * draw[1] - 1) * 0.2 * size[1]), round((2 * draw[2] - 1) * 0.2 * size[0])]
        turned = VF.rotate(image, degrees)
        slow = VF.affine(turned, 0.0, moved, 1.0, [0.0, 0.0])
        assert (mine - slow).abs().gt(1e-6).float().mean() < 0.03  # pixels on an edge may round the other way
    flipped = transformed(images, draws, ["flip"], angle=1, shift=0.1)
    assert torch.equal(flipped, images.flip(3))


def test_change_is_a_mean_square():
    plain, moved = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert feature_change(plain, moved).tolist() == [2.0, 5.0]


def scored(state: State, **options) -> torch.Tensor:
    context = replace(small_context(), new_model=tiny_cnn)
    given = replace(state, findings={"net": tiny_cnn().state_dict()})
    return FeatureConsistency(weights="net", **options).run(given, context, name="score", work=None).state.scores["fct"]


@pytest.mark.parametrize("knows", [True, False])
def test_a_network_that_knows_nothing_any_more_is_told(knows, tmp_path):
    state, said = digits(150), []
    context = replace(small_context(say=said.append), new_model=tiny_cnn)
    warm = Fit(module=partial(Classifier, lr=0.05), epochs=8, batch_size=20, into="net")
    state = warm.run(state, context, name="warm", work=tmp_path).state
    if not knows:  # the head answers 3, whatever it is shown
        net = dict(state.findings["net"])
        net["head.bias"] = net["head.bias"] + 1e3 * torch.eye(10)[3]
        state = replace(state, findings={"net": net})
    FeatureConsistency(weights="net", draws=1).run(state, context, name="score", work=None)
    assert [line for line in said if "as a guess would be" in line] == said[len(said) - (not knows) :]


def test_a_rows_score_is_its_own_mean_over_its_own_draws():
    state = digits(150)
    scores = scored(state, draws=2)
    assert torch.equal(scores, scored(state, draws=2))
    assert scores.shape == (150,)
    assert float(scores.min()) >= 0
    blank = State(Split.of(torch.zeros(5, 1, 16, 16, dtype=torch.uint8), torch.zeros(5).long()), 10)
    assert scored(blank).abs().max() == 0  # nothing to turn


def test_ranks_are_exact_and_ties_are_broken_by_the_seed():
    scores = torch.tensor([0.0] * 50 + list(range(1, 51)))
    state = replace(digits(100), scores={"fct": scores})
    marked = Mark(score="fct", suspect=0.05, trusted=0.2)
    groups = marked.run(state, small_context(), name="split", work=None).state.groups
    assert groups["suspect"].nonzero().flatten().tolist() == [95, 96, 97, 98, 99]
    assert int(groups["trusted"].sum()) == 20
    assert not groups["trusted"][50:].any()
    assert groups["trusted"].nonzero().flatten().tolist() != list(range(20))
    other = marked.run(state, replace(small_context(), seed=1), name="split", work=None).state.groups
    assert not torch.equal(other["trusted"], groups["trusted"])


def test_equal_scores_and_wrong_settings_are_refused():
    state = replace(digits(30), scores={"fct": torch.ones(30)})
    with pytest.raises(UserError, match="stage split: all scores of fct are equal"):
        Mark(score="fct", suspect=0.1, trusted=0.2).run(state, small_context(), name="split", work=None)
    with pytest.raises(UserError, match=r"suspect \+ trusted=1\.1"):
        Mark(score="fct", suspect=0.9, trusted=0.2)
    for wrong, message in (
        ({"transforms": ["rotat"]}, "did you mean 'rotate'"),
        ({"transforms": ["none"]}, "at least one that changes"),
        ({"draws": 0}, "draws=0"),
        ({"angle": 0}, "angle=0"),
        ({"shift": 2}, "shift=2"),
    ):
        with pytest.raises(UserError, match=message):
            FeatureConsistency(weights="net", **wrong)
    with pytest.raises(UserError, match="reserved is a set of its own"):
        Fit(module=partial(Classifier, lr=0.1), epochs=1, rows=["suspect", "reserved"])


def test_groups_are_gone_through_one_after_the_other():
    split = digits(50).train
    parts = [torch.arange(0, 50, 3), torch.arange(1, 50, 3)]
    loader = ResidentLoader(split, batch_size=4, device=torch.device("cpu"), rows=parts, seed=1)
    seen = [batch.rows for batch in loader]
    assert len(loader) == len(seen) == 5 + 5
    first = math.ceil(len(parts[0]) / 4)
    assert torch.equal(torch.cat(seen[:first]).sort().values, parts[0])
    assert torch.equal(torch.cat(seen[first:]).sort().values, parts[1])


def test_the_repair_unlearns_what_is_suspect_and_keeps_what_is_trusted(tmp_path):
    """Ten rows with a wrong label are unlearnt; the others stay as they were learnt."""
    state = digits(200)
    labels = state.train.labels.clone()
    wrong = torch.zeros(200, dtype=torch.bool)
    wrong[:10] = True
    labels[:10] = (labels[:10] + 3) % 10
    state = replace(state, train=Split(state.train.images, labels, state.train.index))
    context = replace(small_context(), new_model=tiny_cnn)
    victim = Fit(module=partial(Classifier, lr=0.05), epochs=25, batch_size=20)
    state = victim.run(state, context, name="victim", work=tmp_path / "v").state
    groups = {"suspect": wrong, "trusted": ~wrong}
    module = partial(UnlearnRelearn, lr=0.01)
    stage = Fit(module=module, model="current", rows=["suspect", "trusted"], epochs=15, batch_size=20)
    repaired = stage.run(replace(state, groups=groups), context, name="repair", work=tmp_path / "r").state.model

    def right(model) -> list[float]:
        with torch.no_grad():
            found = model.eval()(state.train.images.float() / 255).argmax(1).eq(labels)
        return [float(found[rows].float().mean()) for rows in (wrong, ~wrong)]

    before, after = right(state.model), right(repaired)
    assert before[0] > 0.6
    assert after[0] <= 0.3
    assert after[1] > 0.85


@pytest.mark.parametrize(
    ("ceiling", "expected"), [(None, -(0.3 + 4.0) / 4 + 1.7 / 4), (2.0, -(0.3 + 2.0) / 4 + 1.7 / 4)]
)
def test_the_repair_ends_at_a_suspect_rows_ceiling(ceiling, expected):
    """Cross-entropies 0.3 and 4.0 of suspect rows, 1.2 and 0.5 of trusted ones; above the ceiling there is no slope."""
    state = replace(digits(4), groups={"suspect": torch.tensor([True, True, False, False])})
    module = UnlearnRelearn(model=torch.nn.Identity(), state=state, lr=0.1, ceiling=ceiling)
    module.log_batch = lambda *_: None
    chance = torch.tensor([0.3, 4.0, 1.2, 0.5]).neg().exp()
    logits = torch.stack([chance.log(), (1 - chance).log()], 1).requires_grad_()
    loss = module.training_step(Batch(logits, torch.zeros(4, dtype=torch.long), torch.arange(4)), 0)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert bool(logits.grad[1].any()) == (ceiling is None)
    assert logits.grad[0].any()
    assert logits.grad[2].any()


def test_a_frozen_repair_keeps_the_victims_statistics(tmp_path):
    state = replace(digits(40), model=tiny_cnn())
    state = replace(state, groups={"suspect": torch.arange(40) < 10, "trusted": torch.arange(40) >= 10})
    rows = ["suspect", "trusted"]
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    for mode in ("train", "frozen"):
        module = partial(UnlearnRelearn, lr=0.01, bn_mode=mode)
        stage = Fit(module=module, model="current", rows=rows, epochs=2, batch_size=10)
        after = stage.run(state, small_context(), name="repair", work=tmp_path / mode).state.model.state_dict()
        moved = {name.rsplit(".")[-1] for name, value in after.items() if not torch.equal(value, before[name])}
        assert "weight" in moved
        assert ("running_mean" in moved) == (mode == "train")


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"bn_mode": "eval"}, "bn_mode=eval: "), ({"ceiling": 0}, "ceiling=0: "), ({"ceiling": "high"}, "ceiling=high: ")],
)
def test_settings_of_the_repair_that_make_no_sense_are_refused(setting, words):
    state = replace(digits(4), groups={"suspect": torch.zeros(4, dtype=torch.bool)})
    with pytest.raises(UserError, match=words):
        UnlearnRelearn(model=tiny_cnn(), state=state, lr=0.1, **setting)


def test_the_distinguisher_is_a_network_of_its_own(tmp_path):
    state = replace(digits(60), model=tiny_cnn())
    context = replace(small_context(), new_model=tiny_cnn)
    warm = Fit(module=partial(Classifier, lr=0.05), epochs=1, into="distinguisher")
    tighten = Fit(
        module=partial(CentreSpreading, lr=0.1), epochs=10, batch_size=30, weights="distinguisher", into="distinguisher"
    )
    assert tighten.requires == {"distinguisher"}
    first = warm.run(state, context, name="warm", work=tmp_path / "w").state
    second = tighten.run(first, context, name="tighten", work=tmp_path / "t").state
    assert second.model is state.model
    assert not same(first.findings["distinguisher"], second.findings["distinguisher"])

    def similarity(weights) -> float:
        net = tiny_cnn()
        net.load_state_dict(weights)
        with torch.no_grad():
            features = net.features(state.train.images.float() / 255)
        return float(centre_similarity(features, state.train.labels, 10))

    assert similarity(second.findings["distinguisher"]) < similarity(first.findings["distinguisher"]) - 0.05
