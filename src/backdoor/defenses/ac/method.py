"""Activation Clustering (Chen et al., SafeAI at AAAI 2019, arXiv 1811.03728), on scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from torch import Tensor

from backdoor.checking.ranges import Count, Seed, Share
from backdoor.defenses.features import Detection
from backdoor.errors import UserError, check_whole, suggest

REDUCTIONS = ("ica", "pca")
RULES = ("relative_size", "silhouette")
# Enough rows to tell whether two clusters are apart; the score costs their square.
MEASURED = 2000


def activation_clusters(
    features: Tensor,
    *,
    components: Count = 10,
    reduce: str = "pca",
    rule: str = "relative_size",
    size: Share = 0.35,
    silhouette: Share = 0.15,
    seed: Seed = 0,
) -> Detection:
    """Split a class in two by 2-means on its reduced features; the smaller part may be poison.

    Args:
        features: float (n, D), the rows of one label.
        components: dimensions after the reduction; 10 in the paper.
        reduce: `pca`, or `ica` as in the paper (PCA where FastICA does not converge).
        rule: which classes are flagged: `relative_size`, where the smaller cluster holds less than `size` of them;
            `silhouette`, where the clusters are further apart than `silhouette` (section 4.3).
        seed: of ICA and k-means.

    Returns:
        How much closer a row is to the smaller cluster's centre than to the other's, in [-1, 1], times the
        silhouette of the clustering (so that classes with two clear clusters come first); and the smaller cluster.

    Raises:
        UserError: a setting that is unknown or out of range.
    """
    check_settings(components, reduce, rule, size, silhouette)
    seed %= 2**32  # scikit-learn takes no larger one
    low = reduced(features.double().numpy(), min(components, len(features) - 1, features.shape[1]), reduce, seed)
    found = KMeans(2, n_init=10, random_state=seed).fit(low)
    counts = np.bincount(found.labels_, minlength=2)
    small = int(counts.argmin())
    apart = separation(low, found.labels_, seed)
    far, near = (np.linalg.norm(low - found.cluster_centers_[centre], axis=1) for centre in (1 - small, small))
    closer = (far - near) / np.maximum(far + near, 1e-12)
    suspicious = counts[small] < size * len(low) if rule == "relative_size" else apart > silhouette
    flagged = (found.labels_ == small) & bool(suspicious)
    return Detection(torch.from_numpy(closer * max(apart, 0.0)).float(), torch.from_numpy(flagged))


def check_settings(components: Count, reduce: str, rule: str, size: Share, silhouette: Share) -> None:
    """Raises UserError for the first setting that is wrong."""
    check_whole({"components": components})
    for setting, value, choices in (("reduce", reduce, REDUCTIONS), ("rule", rule, RULES)):
        if value not in choices:
            raise UserError(f"{setting}={value}: {suggest(str(value), choices)}")
    for setting, number, high in (("size", size, 0.5), ("silhouette", silhouette, 1)):
        if not isinstance(number, int | float) or not 0 < number <= high:
            raise UserError(f"{setting}={number}: expected a number above 0 and up to {high}")


def reduced(features: np.ndarray, components: Count, reduce: str, seed: Seed) -> np.ndarray:
    """float64 (n, D) -> (n, components)."""
    if reduce == "ica":
        ica = FastICA(components, whiten="unit-variance", random_state=seed, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            warnings.simplefilter("error", RuntimeWarning)  # division by a variance of 0
            try:
                return ica.fit_transform(features)
            except (ConvergenceWarning, RuntimeWarning, np.linalg.LinAlgError):
                pass
    return PCA(components, random_state=seed).fit_transform(features)


def separation(low: np.ndarray, clusters: np.ndarray, seed: Seed) -> float:
    """Mean silhouette in [-1, 1] of at most `MEASURED` rows; 0 if there is one cluster alone."""
    rows = np.random.default_rng(seed).permutation(len(low))[:MEASURED]
    if len(np.unique(clusters[rows])) < 2 or len(rows) < 3:
        return 0.0
    return float(silhouette_score(low[rows], clusters[rows]))
