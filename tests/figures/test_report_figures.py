"""Figures, read back from their files: gallery, histogram and curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from backdoor.figures.figures import epoch_curves, loss_histogram, stage_curves, trigger_gallery
from backdoor.loggers.base import CSVLogger
from helpers.report import ROWS, STAGES, read_csv


def pixels(path: Path) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(path))[..., :3]


@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.uint8), (1, torch.uint8), (3, torch.float32)])
def test_gallery_shows_the_trigger_and_grey_elsewhere(tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
    clean = torch.full((9, channels, 16, 16), 60, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[..., -8:, -8:] = 200
    if dtype == torch.float32:
        clean, triggered = clean / 255, triggered / 255
    labels = torch.arange(9)
    path = trigger_gallery(
        clean, triggered, tmp_path / "deep" / "gallery.png", labels=labels, targets=labels, classes=["$a"] * 9
    )
    shown = pixels(path)
    unstamped, stamp, grey = ((np.abs(shown - level).max(-1) < 0.003).sum() for level in (60 / 255, 200 / 255, 0.5))
    # Of each image a quarter bears the trigger: 8 clean ones, then 3/4 and 1/4, then 3/4 in mid-grey.
    assert stamp / unstamped == pytest.approx(0.25 / 1.75, rel=0.05)
    assert grey / unstamped == pytest.approx(0.75 / 1.75, rel=0.05)
    assert [item.name for item in path.parent.iterdir()] == ["gallery.png"], "no temporary file is left"


def test_gallery_amplifies_small_residuals_only(tmp_path: Path) -> None:
    clean = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    weak = pixels(trigger_gallery(clean, clean + 1, tmp_path / "weak.png"))
    # 1/255 amplified 64 times above mid-grey
    assert (np.abs(weak - (0.5 + 64 / 255)).max(-1) < 0.01).mean() > 0.05
    with pytest.raises(ValueError, match="two equal"):
        trigger_gallery(clean, clean[:1], tmp_path / "x.png")
    with pytest.raises(ValueError, match="N > 0"):
        trigger_gallery(clean[:0], clean[:0], tmp_path / "x.png")


def test_histogram_separates_clean_from_poisoned(tmp_path: Path) -> None:
    poisoned = torch.arange(1000) < 100
    scores = torch.where(poisoned, 5.0, 0.0) + torch.linspace(0, 1, 1000)
    path = loss_histogram(scores, poisoned, poisoned, tmp_path / "a.png", title="50 % $x")
    shown = pixels(path)
    middle = shown[: int(shown.shape[0] * 0.75)]
    orange = (middle[..., 0] > middle[..., 2] + 0.2).nonzero()[1]
    blue = (middle[..., 2] > middle[..., 0] + 0.2).nonzero()[1]
    assert len(orange)
    assert blue.max() < orange.min(), "the two groups lie apart, poisoned to the right"
    unknown = pixels(loss_histogram(scores, None, None, tmp_path / "b.png", title="unknown"))
    assert np.ptp(unknown, axis=-1).max() < 0.02, "without the truth there is one grey histogram"


@pytest.mark.parametrize("scores", [torch.full((50,), 2.0), torch.tensor([0.0, float("nan"), float("inf"), -1])])
def test_histogram_survives_odd_scores(tmp_path: Path, scores: torch.Tensor) -> None:
    flagged = torch.zeros(len(scores), dtype=torch.bool)
    assert loss_histogram(scores, flagged, ~flagged, tmp_path / "a.svg", "t").stat().st_size > 1000


def test_histogram_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one finite"):
        loss_histogram(torch.full((3,), float("nan")), None, None, tmp_path / "a.png", "t")
    with pytest.raises(ValueError, match="poisoned: expected bool"):
        loss_histogram(torch.zeros(3), torch.zeros(2, dtype=torch.bool), None, tmp_path / "a.png", "t")
    assert not list(tmp_path.iterdir())


def test_curves_label_what_is_known(tmp_path: Path) -> None:
    # Matplotlib's SVG keeps each written text as a comment.
    full = stage_curves(STAGES, tmp_path / "stages.svg").read_text()
    for text in ("93.6", "1.2", "89.0", "unlearn", "(control)", "R-Acc"):
        assert f"<!-- {text} -->" in full
    named = stage_curves([{"name": "control", "c_acc": 0.5, "control": True}], tmp_path / "named.svg").read_text()
    assert "<!-- control -->" in named
    assert "(control)" not in named
    bare = stage_curves([{"name": "victim", "c_acc": 0.5}], tmp_path / "bare.svg").read_text()
    assert "<!-- 50.0 -->" in bare
    assert "ASR" not in bare
    groups = [{"name": "victim", "c_acc": 0.5, "asr": 0.75, "asr/second": 0.25, "asr_worst": 0.75}]
    several = stage_curves(groups, tmp_path / "groups.svg").read_text()
    for text in ("ASR second", "25.0", "75.0"):
        assert f"<!-- {text} -->" in several
    with pytest.raises(ValueError, match="at least one"):
        stage_curves([], tmp_path / "none.svg")


def test_epoch_curves_read_the_csv(tmp_path: Path) -> None:
    logger = CSVLogger()
    logger.start({}, tmp_path)
    for row in ROWS:
        logger.log(row)
    drawn = epoch_curves(read_csv(tmp_path), tmp_path / "epochs.svg").read_text()
    for text in ("victim", "unlearn", "C-Acc", "ASR", "training loss"):
        assert f"<!-- {text} -->" in drawn
    several = epoch_curves([{**row, "asr/second": 0.5} for row in read_csv(tmp_path)], tmp_path / "groups.svg")
    assert "<!-- ASR second -->" in several.read_text()
    with pytest.raises(ValueError, match="at least one"):
        epoch_curves([], tmp_path / "none.svg")
