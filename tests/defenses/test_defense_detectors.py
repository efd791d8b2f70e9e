"""Spectral Signatures and Activation Clustering: formulas by hand, planted outliers, odd classes, wrong settings."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from backdoor.defenses.ac import activation_clusters
from backdoor.defenses.features import FeatureDetector, by_class, features_of
from backdoor.defenses.spectral import spectral_signatures
from backdoor.errors import UserError
from helpers.contexts import small_context
from helpers.surrogate import NearestMean, digits, tiny_cnn


def planted(clean: int, poisoned: int, *, gap: float = 6.0, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of one class, and which rows were moved along one direction."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(clean + poisoned, width, generator=generator, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=generator, dtype=torch.float64), dim=0)
    moved = torch.zeros(clean + poisoned, dtype=torch.bool)
    moved[torch.randperm(clean + poisoned, generator=generator)[:poisoned]] = True
    features[moved] += gap * direction
    return features, moved


def test_spectral_scores_by_hand():
    features = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [10.0, 1.0]], dtype=torch.float64)
    found = spectral_signatures(features, poison_share=0.2)  # int(1.5 * 0.2 * 4) = 1 row
    assert found.scores.tolist() == pytest.approx([16.0, 4.0, 0.0, 36.0])  # squares around the mean 4
    assert found.flagged.tolist() == [False, False, False, True]


def test_spectral_is_the_svd_of_the_centred_features():
    features, moved = planted(90, 10)
    centred = features - features.mean(0)
    right = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    found = spectral_signatures(features, poison_share=0.1)
    assert torch.allclose(found.scores, (centred @ right).square().float(), rtol=1e-5)
    assert int(found.flagged.sum()) == 15
    assert int((found.flagged & moved).sum()) == 10


@pytest.mark.parametrize("reduce", ["pca", "ica"])
@pytest.mark.parametrize("rule", ["relative_size", "silhouette"])
def test_clusters_find_the_moved_rows(reduce, rule):
    features, moved = planted(160, 40, gap=12.0)
    found = activation_clusters(features, reduce=reduce, rule=rule, components=4)
    assert torch.equal(found.flagged, moved)
    assert found.scores[moved].min() > found.scores[~moved].max()


def test_a_class_of_one_cluster_is_left_alone():
    features, _ = planted(200, 0)
    assert not activation_clusters(features, rule="silhouette").flagged.any()
    assert not activation_clusters(features, rule="relative_size", size=0.2).flagged.any()


def test_half_a_class_is_no_smaller_cluster():
    """10 % of CIFAR-10, all in one class, are 47 % of it: the rule by size says nothing, that by distance does."""
    features, moved = planted(105, 95, gap=20.0)
    assert not activation_clusters(features, rule="relative_size").flagged.any()
    assert torch.equal(activation_clusters(features, rule="silhouette").flagged, moved)


@pytest.mark.parametrize("detector", [spectral_signatures, activation_clusters])
def test_each_class_is_looked_at_alone_and_odd_ones_say_nothing(detector):
    features, moved = planted(90, 10, gap=30.0)
    others = torch.cat([torch.full((50, 20), 3.0), torch.randn(2, 20), torch.randn(1, 20)]).double()
    labels = torch.cat([torch.zeros(100), torch.ones(50), torch.full((2,), 2), torch.full((1,), 5)]).long()
    found = by_class(torch.cat([features, others]), labels, detector)
    assert found.flagged[:100][moved].all()
    assert not found.flagged[100:].any()
    assert not found.scores[100:].any()
    assert torch.isfinite(found.scores).all()


def test_the_stage_scores_every_row_of_the_train_set(tmp_path):
    state = digits(80)
    model = tiny_cnn()
    stage = FeatureDetector(score="spectral", detector=spectral_signatures)
    given = type(state)(state.train, 10, model=model)
    found = stage.run(given, small_context(), name="detect", work=tmp_path).state
    features = features_of(model, state.train, stage="detect", channels_last=False)
    assert torch.allclose(features, model.features(state.train.images.float() / 255).detach(), atol=1e-5)
    expected = by_class(features, state.train.labels, spectral_signatures).scores
    assert torch.equal(found.scores["spectral"], expected)
    assert found.groups["suspect"].shape == (80,)
    assert found.model is model


def test_models_without_features_and_features_that_are_no_numbers_are_refused():
    state, model = digits(80), tiny_cnn()
    with pytest.raises(UserError, match=r"stage detect: expected a model with features.*NearestMean"):
        features_of(NearestMean(state), state.train, stage="detect")
    with torch.no_grad():
        model.mean.fill_(float("nan"))
    with pytest.raises(UserError, match="stage detect: the model's features are no numbers"):
        features_of(model, state.train, stage="detect")


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (partial(spectral_signatures, poison_share=0.7), r"poison_share=0\.7: expected a share between 0 and 2/3"),
        (partial(spectral_signatures, poison_share=0), r"poison_share=0"),
        (partial(activation_clusters, components=0), "components=0: expected a whole number"),
        (partial(activation_clusters, reduce="pcaa"), "reduce=pcaa: did you mean 'pca'"),
        (partial(activation_clusters, rule="size"), "rule=size"),
        (partial(activation_clusters, size=0.6), r"size=0\.6: expected a number above 0 and up to 0\.5"),
        (partial(activation_clusters, silhouette=2), "silhouette=2"),
    ],
)
def test_wrong_settings_are_refused_when_the_stage_is_made(detector, message):
    with pytest.raises(UserError, match=message):
        FeatureDetector(score="x", detector=detector)
