"""What a run is judged by: pure functions, and the same as `torchmetrics.Metric` for batches and ranks."""

from __future__ import annotations

from backdoor.metrics.attack import (
    AttackSuccess,
    CleanAccuracy,
    attack_success,
    clean_accuracy,
    defense_effectiveness_rating,
    evaluate_predictions,
    robust_improvement_rating,
    worst_asr,
)
from backdoor.metrics.detection import detection_metrics
from backdoor.metrics.goals import Targeted, Untargeted

__all__ = [
    "AttackSuccess",
    "CleanAccuracy",
    "Targeted",
    "Untargeted",
    "attack_success",
    "clean_accuracy",
    "defense_effectiveness_rating",
    "detection_metrics",
    "evaluate_predictions",
    "robust_improvement_rating",
    "worst_asr",
]
