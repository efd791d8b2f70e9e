"""DBD: the formulas have the cards' values, labels are hidden where they should be, and rows are chosen as written."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from backdoor.data.loader import Chooses, ResidentLoader
from backdoor.defenses.dbd import (
    Contrast,
    CredibleRows,
    MixMatch,
    SymmetricHead,
    contrastive_loss,
    credible_rows,
    interleave,
    sharpen,
    symmetric_cross_entropy,
)
from backdoor.errors import UserError
from backdoor.stages import Fit, Pipeline, Step
from backdoor.state import Split, State
from backdoor.store.store import Store
from backdoor.training.views import Views
from helpers.contexts import same, small_context
from helpers.surrogate import digits, tiny_cnn

# The card's example: three rows, two views each, in two dimensions.
VIEWS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[0.8, 0.6], [0.6, 0.8], [-0.8, 0.6]]])


def test_the_contrastive_loss_has_the_cards_value():
    assert float(contrastive_loss(VIEWS)) == pytest.approx(0.652731, abs=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_contrastive_loss_against_loops(symmetric):
    views = F.normalize(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    flat = [(view, row) for view in range(2) for row in range(5)]
    losses = []
    for view, row in flat if symmetric else flat[:5]:
        scores = {key: float(views[view, row] @ views[key]) / 0.5 for key in flat if key != (view, row)}
        losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[1 - view, row])
    assert float(contrastive_loss(views, symmetric=symmetric)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_symmetric_cross_entropy_has_the_cards_values():
    logits, label = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    assert float(symmetric_cross_entropy(logits, label, alpha=1, beta=0)) == pytest.approx(0.169846, abs=1e-5)
    assert float(symmetric_cross_entropy(logits, label, alpha=0, beta=1)) == pytest.approx(1.438704, abs=1e-5)
    assert float(symmetric_cross_entropy(logits, label)) == pytest.approx(1.455689, abs=1e-5)


def test_sharpening_and_ramp_have_the_cards_values():
    assert sharpen(torch.tensor([[0.5, 0.3, 0.2]])).tolist()[0] == pytest.approx([0.6579, 0.2368, 0.1053], abs=1e-4)
    module = mixmatch(digits().train)
    assert module.weight_at(0) == pytest.approx(0.789, abs=1e-3)
    assert module.weight_at(180) == module.weight_at(500) == 15


def test_interleaving_is_an_involution_and_mixes_the_parts():
    rows = torch.arange(12)
    mixed = interleave(rows, 3)
    assert torch.equal(interleave(mixed, 3), rows)
    assert not torch.equal(mixed, rows)
    assert all((part < 4).any() for part in mixed.chunk(3))  # each part has a labelled row
    with pytest.raises(ValueError, match="multiple of 3"):
        interleave(torch.arange(4), 3)


def test_credible_rows_have_the_lowest_losses_of_all_or_of_each_class():
    losses, labels = torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([0, 1, 0, 1])
    assert credible_rows(losses, 0.5).tolist() == [False, True, False, True]
    assert credible_rows(losses, 0.5, labels).tolist() == [False, True, True, False]


def mixmatch(train: Split, **settings: object) -> MixMatch:
    return MixMatch(model=tiny_cnn(), state=State(train, 10), lr=0.002, **settings)  # type: ignore[arg-type]


def test_a_batch_has_credible_rows_and_twice_the_same_others():
    module = mixmatch(digits().train.take(torch.arange(40)), rows=8, steps=5, augment="none")
    assert isinstance(module, Chooses)
    loader = ResidentLoader(
        module.state.train, batch_size=1, device=torch.device("cpu"), chooser=module, epoch=1, augment=None
    )
    batches = [batch.rows for batch in loader]
    assert len(batches) == len(loader) == 5
    credible = set(credible_rows(module.losses, 0.5).nonzero()[:, 0].tolist())
    for rows in batches:
        labelled, first, second = rows.chunk(3)
        assert set(labelled.tolist()) <= credible
        assert torch.equal(first, second)
        assert not set(first.tolist()) & credible
    assert torch.equal(next(iter(module.batches(1))), batches[0])
    assert not torch.equal(next(iter(module.batches(2))), batches[0])


def test_a_pool_smaller_than_a_batch_repeats():
    module = mixmatch(digits().train.take(torch.arange(6)), rows=8, steps=2)
    assert [len(rows) for rows in module.batches(0)] == [24, 24]


CONTEXT = replace(small_context(), new_model=tiny_cnn)


def fitted(stage: Fit, state: State, tmp_path) -> State:
    return stage.run(state, CONTEXT, name="stage", work=tmp_path).state


def test_the_contrast_reads_no_label_and_moves_no_head(tmp_path):
    train = digits().train.take(torch.arange(64))
    others = replace(train, labels=train.labels.roll(1))
    module = partial(Contrast, lr=0.1, views={"blur": 0.5})
    stage = Fit(module=module, labels=False, epochs=1, batch_size=32)
    first, second = (fitted(stage, State(split, 10), tmp_path) for split in (train, others))
    assert same(first.model.state_dict(), second.model.state_dict())
    assert torch.equal(second.train.labels, others.labels)  # hidden while it trains, not lost
    fresh = CONTEXT.make_model().state_dict()
    assert torch.equal(first.model.state_dict()["head.weight"], fresh["head.weight"])
    key = next(name for name in fresh if name.startswith("backbone") and name.endswith("weight"))
    assert not torch.equal(first.model.state_dict()[key], fresh[key])


def test_other_labels_share_the_contrast_and_nothing_else(tmp_path):
    keys = {"train": "one", "images": "same"}
    module = partial(Contrast, lr=0.1)
    blind, seeing = (Step("contrast", Fit(module=module, labels=labels, epochs=1), {}) for labels in (False, True))
    one, two = (
        Pipeline(Store(tmp_path), CONTEXT, keys={**keys, "train": train}, common={}) for train in ("one", "two")
    )
    assert one.key(blind) == two.key(blind)
    assert one.key(seeing) != two.key(seeing)


@pytest.mark.parametrize("bn_mode", ["train", "frozen"])
def test_the_head_learns_and_the_features_stay(bn_mode, tmp_path):
    state = State(digits().train.take(torch.arange(64)), 10, model=CONTEXT.make_model())
    stage = Fit(module=partial(SymmetricHead, lr=0.01, optimizer="adam", bn_mode=bn_mode), model="current", epochs=2)
    after, before = fitted(stage, state, tmp_path).model.state_dict(), state.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"head.weight", "head.bias"} <= moved
    rest = moved - {"head.weight", "head.bias"}
    assert all("running" in name or "num_batches" in name for name in rest)
    assert bool(rest) == (bn_mode == "train")


def test_mixmatch_trains_all_and_hands_its_ranking_on(tmp_path):
    state = State(digits().train.take(torch.arange(64)), 10, model=CONTEXT.make_model())
    stage = Fit(
        module=partial(MixMatch, lr=0.002, optimizer="adam", rows=8, steps=4),
        model="current",
        epochs=2,
        callbacks={"credible": CredibleRows},
    )
    first, again = (fitted(stage, state, tmp_path / name) for name in ("a", "b"))
    assert same(first.model.state_dict(), again.model.state_dict())
    assert not same(first.model.state_dict(), state.model.state_dict())
    assert int(first.groups["trusted"].sum()) == 32
    assert float(first.scores["label_loss"][first.groups["trusted"]].max()) <= float(
        first.scores["label_loss"][~first.groups["trusted"]].min()
    )


def test_blurred_views_stay_in_range_on_small_images():
    for side in (4, 8, 32):
        images = torch.rand(3, 1, side, side)
        seen = Views(scale=1.0, flip=0.0, jitter=0.0, grey=0.0, blur=1.0)(images)
        assert seen.shape == images.shape
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 1
        assert seen.std() < images.std()


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (Contrast, {"temperature": 0}, "temperature=0: expected a number above 0"),
        (Contrast, {"projection": 0}, "projection=0: expected"),
        (Contrast, {"views": {"blur": 2}}, r"views\.blur=2: expected a number from 0 to 1"),
        (SymmetricHead, {"bn_mode": "eval"}, "bn_mode=eval: "),
        (SymmetricHead, {"optimizer": "adamw"}, "optimizer=adamw: "),
        (MixMatch, {"share": 1.0}, "share=1.0: expected a share between 0 and 1"),
        (MixMatch, {"steps": 0}, "steps=0: expected"),
        (MixMatch, {"weight": -1}, "weight=-1: expected a number of at least 0"),
        (MixMatch, {"mix_alpha": 0}, "mix_alpha=0: expected a number above 0"),
    ],
)
def test_bad_settings_are_refused_when_the_stage_is_made(module, settings, message):
    with pytest.raises(UserError, match="^" + message):
        Fit(module=partial(module, lr=0.1, **settings), model="fresh", epochs=1)
