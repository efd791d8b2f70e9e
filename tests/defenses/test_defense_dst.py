"""D-ST: the loss has the card's values, views stay in range, and only what should move moves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from backdoor.defenses.dst import MixedHead, SemiContrastive, semi_contrastive_loss
from backdoor.errors import UserError
from backdoor.stages import Fit
from backdoor.training.module import schedule_factor
from backdoor.training.views import Views
from helpers.contexts import same, small_context
from helpers.surrogate import digits, tiny_cnn

# The card's example: three rows, two views each, in two dimensions.
VIEWS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[0.8, 0.6], [0.6, 0.8], [-0.8, 0.6]]])
LABELS = torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("clean", "expected"),
    [((True, True, False), 5.803419), ((True, True, True), 10.628816), ((False, False, False), 0.978022)],
)
def test_the_loss_has_the_cards_values(clean, expected):
    assert float(semi_contrastive_loss(VIEWS, LABELS, torch.tensor(clean))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("positives", ["same_label_any", "same_label_clean"])
def test_the_loss_against_loops(positives):
    generator = torch.Generator().manual_seed(0)
    views = F.normalize(torch.randn(2, 7, 5, generator=generator), dim=2)
    labels = torch.randint(0, 3, (7,), generator=generator)
    clean = torch.rand(7, generator=generator) < 0.5
    total = 0.0
    flat = [(row, views[view, row]) for view in range(2) for row in range(7)]
    for a, (row, anchor) in enumerate(flat):
        others = [b for b in range(14) if b != a]
        below = sum(float(torch.exp(anchor @ flat[b][1] / 0.1)) for b in others)
        friends = [
            b
            for b in others
            if flat[b][0] == row
            or (
                clean[row]
                and labels[flat[b][0]] == labels[row]
                and (positives == "same_label_any" or clean[flat[b][0]])
            )
        ]
        logs = [float(anchor @ flat[b][1] / 0.1) - torch.tensor(below).log().item() for b in friends]
        total += -(0.1 / 0.07) * sum(logs) / len(friends)
    found = semi_contrastive_loss(views, labels, clean, positives=positives)
    assert float(found) == pytest.approx(total / 14, rel=1e-4)


def test_an_unknown_choice_is_refused():
    with pytest.raises(UserError, match="did you mean 'same_label_clean'"):
        semi_contrastive_loss(VIEWS, LABELS, torch.ones(3).bool(), positives="same_label_clea")
    with pytest.raises(UserError, match=r"views\.flip=2"):
        Views(flip=2)
    state = replace(digits(20), groups={"trusted": torch.ones(20).bool(), "suspect": torch.zeros(20).bool()})
    with pytest.raises(UserError, match="temperature=0"):
        SemiContrastive(model=tiny_cnn(), state=state, lr=0.1, temperature=0)
    with pytest.raises(UserError, match="weight=-1"):
        MixedHead(model=tiny_cnn(), state=state, lr=0.1, weight=-1)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 20)])
def test_views_differ_and_stay_images(shape):
    images = torch.rand(9, *shape, generator=torch.Generator().manual_seed(0))
    views = Views()
    torch.manual_seed(1)
    one, two = views(images), views(images)
    assert one.shape == images.shape
    assert 0 <= float(one.min()) <= float(one.max()) <= 1
    assert not torch.allclose(one, two)
    torch.manual_seed(1)
    assert torch.equal(views(images), one)
    assert torch.equal(Views(scale=1, flip=0, jitter=0, grey=0)(images), images)


def test_the_rate_rises_then_falls():
    factor = schedule_factor("warm_cosine", steps=100, milestones=(), gamma=0.1, warmup=0.1)
    assert [factor(step) for step in (0, 5, 10, 55, 100)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def marked(count: int = 120):
    state = digits(count)
    trusted = torch.arange(count) < count // 2
    return replace(state, groups={"trusted": trusted, "suspect": torch.arange(count) >= count - 10})


def test_features_move_without_the_head_and_then_the_head_without_the_features(tmp_path):
    state = marked()
    context = replace(small_context(), new_model=tiny_cnn)
    views = {"scale": 0.8, "flip": 0.0, "jitter": 0.1}
    features = Fit(module=partial(SemiContrastive, lr=0.05, views=views), epochs=4, batch_size=60, requires=["trusted"])
    assert features.requires == {"trusted"}
    head = Fit(
        module=partial(MixedHead, lr=0.5, views=views),
        model="current",
        rows="suspect|trusted",
        epochs=10,
        batch_size=30,
    )
    assert head.requires == {"model", "suspect", "trusted"}
    first = features.run(state, context, name="features", work=tmp_path / "f").state
    again = features.run(state, context, name="features", work=tmp_path / "g").state
    assert same(first.model.state_dict(), again.model.state_dict())
    fresh, found = tiny_cnn().state_dict(), first.model.state_dict()
    moved = {name.split(".")[0] for name in fresh if not torch.equal(fresh[name], found[name])}
    assert moved == {"backbone"}
    last = head.run(first, context, name="head", work=tmp_path / "h").state
    final = last.model.state_dict()
    assert {name.split(".")[0] for name in final if not torch.equal(final[name], found[name])} == {"head"}
    assert head.select(state, "head")[1][0].tolist() == [*range(60), *range(110, 120)]

    def right(model) -> float:
        rows = state.groups["trusted"]
        with torch.no_grad():
            answers = model.eval()(state.train.images[rows].float() / 255).argmax(1)
        return float(answers.eq(state.train.labels[rows]).float().mean())

    assert right(last.model) > max(0.4, right(first.model) + 0.2)
