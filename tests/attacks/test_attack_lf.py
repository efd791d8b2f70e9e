"""LF: the pass band, the bound, and a pattern that fools the surrogate it was made for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from scipy.fft import dctn

from backdoor.attacks.lf import SmoothPattern, dct_basis, low_pass, pass_band, project, smooth_pattern, spectrum
from backdoor.errors import UserError
from backdoor.triggers import Additive
from helpers.command import QUICK, read_json
from helpers.contexts import small_context
from helpers.surrogate import NearestMean, digits
from helpers.trigger import photos


def outside(pattern: torch.Tensor, band: float) -> float:
    """The largest DCT coefficient outside the pass band."""
    height, width = pass_band(tuple(pattern.shape[-2:]), band)
    coefficients = spectrum(pattern.double()).abs()
    return max(float(coefficients[..., height:, :].max()), float(coefficients[..., width:].max()))


@pytest.mark.parametrize("side", [1, 5, 32])
def test_the_basis_is_orthonormal(side):
    basis = dct_basis(side)
    assert torch.allclose(basis @ basis.T, torch.eye(side, dtype=torch.float64), atol=1e-12)


def test_the_spectrum_is_scipys():
    images = photos(2, 17).double()[:, :, :, :12]
    expected = torch.from_numpy(dctn(images.numpy(), axes=(2, 3), norm="ortho"))
    assert torch.allclose(spectrum(images), expected, atol=1e-9)


def test_low_pass_keeps_a_slow_wave_and_a_constant_and_drops_a_fast_wave():
    basis = dct_basis(32)
    assert pass_band((32, 32), 0.25) == (8, 8)
    for number, kept in ((0, True), (1, True), (7, True), (8, False), (31, False)):
        wave = basis[number].expand(1, 32, 32)
        expected = wave if kept else torch.zeros_like(wave)
        assert torch.allclose(low_pass(wave, 0.25), expected, atol=1e-12)
        assert torch.allclose(low_pass(wave.mT, 0.25), expected.mT, atol=1e-12)
    noise = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    once = low_pass(noise, 0.25)
    assert pass_band((24, 40), 0.25) == (6, 10)
    assert outside(once, 0.25) < 1e-4 < outside(noise, 0.25)
    assert torch.allclose(low_pass(once, 0.25), once, atol=1e-5)
    assert torch.allclose(low_pass(noise, 1.0), noise, atol=1e-5)


def test_projecting_holds_the_bound_and_the_pass_band_at_once():
    noise = 100 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = project(noise, bound=16, band=0.25)
    assert found.abs().max() <= 16 + 1e-4
    assert outside(found, 0.25) < 1e-3
    small = low_pass(noise, 0.25)
    small = small * (5 / small.abs().max())
    assert torch.allclose(project(small, bound=16, band=0.25), small, atol=1e-5)  # what fits is left alone
    assert project(torch.zeros(1, 8, 8), bound=16, band=0.25).abs().max() == 0


@pytest.fixture(scope="module")
def found():
    """The state after the search on the digits against the nearest class mean."""
    state = digits(size=16)
    state = replace(state, model=NearestMean(state))
    stage = SmoothPattern(target=5, bound=128, band=0.25, steps=60, batch_size=32, lr=8)
    return stage.run(state, small_context(), name="pattern", work=None).state


def test_the_pattern_is_smooth_bounded_and_fools_the_surrogate(found):
    pattern = found.findings["pattern"]
    assert pattern.shape == (1, 16, 16)
    assert pattern.abs().max() == pytest.approx(128, abs=1e-3)  # the bound is used up, and held
    assert outside(pattern, 0.25) < 1e-2
    assert found.findings["fooling_rate_before"] < 0.01
    assert found.findings["fooling_rate"] > 0.2
    assert all(parameter.requires_grad for parameter in found.model.parameters())


def test_the_fooling_rate_is_what_the_model_says_of_the_files(found):
    shown = found.train.take(found.train.labels != 5)
    stamped = Additive().equip(found.findings)(shown.images)
    taken = found.model(stamped.float() / 255).argmax(1) == 5
    assert found.findings["fooling_rate"] == pytest.approx(float(taken.float().mean()))


def test_the_search_is_seeded_and_a_debug_run_caps_it(found):
    state = replace(found, findings={})
    stage = SmoothPattern(target=5, bound=128, band=0.25, steps=60, batch_size=32, lr=8)
    again = stage.run(state, small_context(), name="pattern", work=None).state
    assert torch.equal(again.findings["pattern"], found.findings["pattern"])
    capped = stage.run(state, small_context(max_batches=1), name="pattern", work=None).state
    assert 0 < capped.findings["pattern"].abs().max() < 20


def test_a_penalty_makes_the_pattern_smaller(found):
    images = [found.train.images[:64].float() / 255] * 40
    settings = {"shape": (1, 16, 16), "target": 5, "bound": 128, "band": 0.25, "lr": 8}
    free, held = (smooth_pattern(found.model, images, **settings, penalty=penalty) for penalty in (0, 100))
    assert held.square().mean() < 0.5 * free.square().mean()


@pytest.mark.parametrize(
    "wrong", [{"bound": 0}, {"band": 1.5}, {"band": 0}, {"lr": -1}, {"penalty": -1}, {"steps": 0}, {"measured": 1.5}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=rf"{next(iter(wrong))}=.*expected"):
        SmoothPattern(target=0, **wrong)


def test_additive_adds_clips_rounds_and_refuses_another_shape():
    pattern = torch.tensor([-20.0, 0.4, 0.6, 300.0]).view(1, 2, 2)
    trigger = Additive(finding="mine").equip({"mine": pattern})
    images = torch.full((2, 1, 2, 2), 10, dtype=torch.uint8)
    assert trigger(images)[1].flatten().tolist() == [0, 10, 11, 255]
    assert set(trigger.state_dict()) == {"pattern"}
    assert Additive().state_dict() == {}
    with pytest.raises(UserError, match=r"made for images \(1, 2, 2\), got \(3, 2, 2\)"):
        trigger(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no pattern yet"):
        Additive()(images)


def test_lf_and_trojannn_share_the_surrogate(command, tmp_path):
    for name in ("lf", "trojannn"):
        words = (f"attack={name}", "defense=none", f"hydra.run.dir={tmp_path / name}")
        status, out, said = command(*QUICK, *words, cache=tmp_path / "cache")
        assert status == 0, said
        line = next(line for line in out.splitlines() if line.startswith("surrogate"))
        assert ("from the store" in line) == (name == "trojannn")
        pattern = load_file(tmp_path / name / "trigger.safetensors")["pattern"]
        assert pattern.shape == (3, 32, 32)
    made = [step["findings"] for step in read_json(tmp_path / "lf")["crafting"]]
    assert "fooling_rate" in made[-1]
    assert len(list((tmp_path / "cache" / "stage").glob("*/model.safetensors"))) == 1
