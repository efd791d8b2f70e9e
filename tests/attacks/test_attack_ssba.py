"""SSBA: the message comes back, every image has a residual of its own, and no encoder serves other data."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.attacks.ssba import Decoder, Encoder, Steganography, StegoTraining, TrainEncoder
from backdoor.attacks.ssba.method import bit_accuracy, image_weight, losses, secret_of
from backdoor.configs.places import conf_dir
from backdoor.errors import UserError
from backdoor.stages import Pipeline, Step
from backdoor.state import Split, State
from backdoor.store.store import Store
from helpers.command import QUICK, read_json
from helpers.contexts import small_context

BITS = 4
ENCODER = {"widths": [8, 8, 16, 32]}
DECODER = {"widths": [16, 16, 32], "strides": [2, 2, 2], "hidden": 64}


def stage(steps: int, bits: int = BITS, **training: Any) -> TrainEncoder:
    """A tiny TrainEncoder."""
    course = {"lr": 3e-3, "schedule": "cosine", "image_weight": 10.0, "start_accuracy": 0.9, "delay": 10, "ramp": 50}
    return TrainEncoder(
        bits=bits,
        encoder=partial(Encoder, **ENCODER),
        decoder=partial(Decoder, **DECODER),
        module=partial(StegoTraining, **{**course, **training}),
        batch_size=32,
        steps=steps,
        held_out=0.1,
    )


def digits(size: int = 16, channels: int = 1) -> State:
    """500 handwritten digits, enlarged."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images[:500] * 15.9).reshape(-1, 1, 8, 8).float()
    grown = F.interpolate(pixels, (size, size)).repeat(1, channels, 1, 1).to(torch.uint8)
    return State(Split.of(grown, torch.from_numpy(labels[:500]).long()), 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Findings and history of a short training."""
    outcome = stage(200).run(digits(), small_context(), name="encoder", work=tmp_path_factory.mktemp("work"))
    return dict(outcome.state.findings), outcome.history


def quick(work: Any, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Findings of three steps."""
    context = replace(small_context(), seed=seed, say=lambda line: None)
    return dict(stage(3, **options).run(digits(), context, name="encoder", work=work).state.findings)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_message_comes_back_from_images_that_look_like_themselves(trained):
    findings, history = trained
    assert findings["bit_accuracy"] > 0.97  # random secrets, 8-bit images that were held out
    assert findings["secret_accuracy"] > 0.97
    assert 20 < findings["psnr"] < 60
    assert 0 < findings["mean_change"] < 15  # the card's check of encoded images
    assert history[0]["image_weight"] == 0 < history[-1]["image_weight"] <= 10  # message first, image after
    assert history[-1]["residual_mse"] < history[2]["residual_mse"]


def test_what_the_trigger_writes_the_stored_decoder_reads_and_each_image_differs(trained):
    findings, _ = trained
    images = digits().train.images[:100]
    decoder = Decoder((1, 16, 16), bits=BITS, **DECODER)
    decoder.load_state_dict(findings["decoder"])
    triggered = Steganography().equip(findings)(images)
    secret = findings["secret"].float().expand(100, -1)
    with torch.no_grad():
        assert bit_accuracy(decoder(triggered / 255), secret).mean() > 0.97
        assert bit_accuracy(decoder(images / 255), secret).mean() < 0.9  # clean images say something else
    residual = triggered.float() - images.float()
    assert residual.abs().mean() == pytest.approx(findings["mean_change"], rel=0.3)
    assert len({tuple(one.flatten().tolist()) for one in residual}) == 100  # sample-specific


def test_an_image_gets_the_same_pixels_whatever_it_is_batched_with(trained, monkeypatch):
    trigger, images = Steganography().equip(trained[0]), digits().train.images[:9]
    whole = trigger(images)
    monkeypatch.setattr("backdoor.attacks.ssba.trigger.BATCH_PIXELS", 4 * 16 * 16)  # 9 images: 4, 4 and 1
    parts = trigger(images)
    assert all(torch.equal(parts[row], trigger(images[row : row + 1])[0]) for row in range(9))
    assert torch.equal(trigger(images.flip(0)).flip(0), parts)
    assert (parts.int() - whole.int()).abs().max() <= 1
    assert trigger(images[:0]).shape == (0, 1, 16, 16)
    floats = trigger(images / 255)
    assert (floats * 255 - parts).abs().max() <= 0.5 + 1e-3
    written = images.clone()
    trigger.write(written, torch.tensor([7, 2]), torch.tensor([7, 2]))
    assert torch.equal(written[[7, 2]], parts[[7, 2]])
    assert torch.equal(written[:2], images[:2])
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in trigger.modules())
    assert not any(part.training for part in trigger.encoder.modules())


def test_same_seed_same_encoder_and_secret_whatever_the_global_generator(tmp_path):
    first = quick(tmp_path)
    torch.rand(7)
    again, other = quick(tmp_path), quick(tmp_path, seed=1)
    assert same(first["encoder"], again["encoder"])
    assert same(first["decoder"], again["decoder"])
    assert torch.equal(first["secret"], again["secret"])
    assert first["psnr"] == again["psnr"]
    assert not same(first["encoder"], other["encoder"])
    assert torch.equal(secret_of(3, 100), secret_of(3, 100))
    assert not torch.equal(secret_of(3, 100), secret_of(4, 100))
    assert 20 < secret_of(3, 100).sum() < 80


def test_from_the_store_the_same_pixels_and_for_other_data_another_encoder(tmp_path):
    def fetch(train: str, model: str = "a", size: int = 16) -> Any:
        pipeline = Pipeline(
            Store(tmp_path),
            replace(small_context(), say=lambda line: None),
            keys={"train": train},
            common={"model": model},
        )
        finished = pipeline.fetch(digits(size), Step("encoder", stage(3), {"steps": 3}))
        return finished, Steganography().equip(finished.state.findings)

    first, trigger = fetch("digits 16")
    stored, loaded = fetch("digits 16", model="b")  # the victim's architecture makes no difference
    assert (first.hit, stored.hit) == (False, True)
    images = digits().train.images[:50]
    assert torch.equal(trigger(images), loaded(images))
    assert same(dict(trigger.state_dict()), dict(loaded.state_dict()))
    larger, bigger = fetch("digits 32", size=32)
    assert not larger.hit
    bigger.check((1, 32, 32))
    with pytest.raises(UserError, match=r"trained on images \(1, 16, 16\), got \(1, 32, 32\)"):
        trigger.check((1, 32, 32))


def test_a_run_keeps_the_secret_and_reuses_the_encoder_only_for_the_same_images(command, tmp_path, cache_dir):
    def run(name: str, *words: str) -> str:
        folder = f"hydra.run.dir={tmp_path / name}"
        status, out, said = command(*QUICK, "attack=ssba", "defense=none", *words, folder, cache=tmp_path / "cache")
        assert status == 0, said
        return next(line for line in out.splitlines() if line.startswith("encoder ") and "(attacker)" in line)

    assert "bit_accuracy" in run("first")
    assert "from the store" in run("again", "attack.ratio=0.2", "model.width=8")
    assert "from the store" not in run("smaller", "data.image_size=24")
    crafting = read_json(tmp_path / "first")["crafting"]
    assert [part["name"] for part in crafting] == ["encoder"]
    assert {"bit_accuracy", "secret_accuracy", "psnr", "mean_change"} == set(crafting[0]["findings"])
    assert (tmp_path / "first" / "trigger.safetensors").exists()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 30, 48), (3, 64, 64), (1, 8, 8), (3, 65, 33)])
def test_networks_take_any_size(shape):
    encoder = Encoder(shape, bits=5, **ENCODER)
    decoder = Decoder(shape, bits=5, **DECODER)
    images, secret = torch.rand(2, *shape), torch.ones(2, 5)
    residual = encoder(images, secret)
    assert residual.shape == images.shape
    assert decoder(images).shape == (2, 5)
    again = Encoder.of(encoder.state_dict())
    assert torch.equal(again(images, secret), residual)
    assert not torch.equal(encoder(images, 1 - secret), residual)


def test_the_image_loss_waits_then_rises():
    weights = [image_weight(since, 10.0, 1000, 3000) for since in (-1, 0, 1000, 2500, 4000, 9000)]
    assert weights == [0, 0, 0, 5, 10, 10]


def test_losses_by_hand():
    logits, secret = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    residual = torch.tensor([0.1, -0.3]).reshape(2, 1, 1, 1)
    found = losses(residual, logits, secret)
    right = torch.tensor([[2.0, 1.0], [-0.5, 3.0]])  # how far each logit is on the right side
    assert found.message == pytest.approx(float(torch.log1p(torch.exp(-right)).mean()), rel=1e-6)
    assert found.image == pytest.approx((0.01 + 0.09) / 2)
    assert found.accuracy == 0.75


def test_the_clock_of_the_image_loss_survives_a_resume():
    networks = stage(1).networks((1, 16, 16))
    module = stage(1).module(model=networks, bits=BITS, seed=0)
    assert int(module.state_dict()["since"]) == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs=3", "expected one of them"),
        ("steps=null", "expected one of them"),
        ("bits=0", r"bits=0: expected a whole number of at least 1"),
        ("held_out=0", r"held_out=0: expected a number between 0 and 1"),
        ("module.lr=-1", r"module\.lr=-1: expected a number of at least 0"),
        ("module.ramp=0", r"module\.ramp=0: expected a whole number of at least 1"),
        ("module.schedule=cosin", "did you mean 'cosine'"),
        ("decoder.strides=[2,2]", r"encoder\.decoder\.strides=\[2, 2\]: expected one for each of 7 widths"),
        ("encoder.widths=[8]", r"encoder\.widths=\[8\]: expected at least two"),
        ("+encoder.depth=3", "unexpected keyword argument 'depth'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_read(command, change, message):
    plus, setting = ("+", change[1:]) if change[0] == "+" else ("", change)
    status, _, said = command(*QUICK, "attack=ssba", f"{plus}attack.stages.encoder.{setting}")
    assert status == 2
    assert re.search(message, said), said


def test_a_trigger_without_an_encoder_says_so():
    trigger = Steganography()
    trigger.check((3, 32, 32))  # nothing can be said yet
    with pytest.raises(UserError, match="needs encoder, secret"):
        trigger.equip({})
    with pytest.raises(UserError, match="needs a trained encoder"):
        trigger(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_the_gpu_preset_has_the_published_settings():
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        node = compose("config", overrides=["attack=ssba", "attack/ssba_encoder=gpu"]).attack.stages.encoder
    assert (node.bits, node.epochs, node.batch_size, node.module.lr) == (100, 20, 64, 1e-4)
    assert (node.module.image_weight, node.module.delay, node.module.ramp) == (10, 1000, 3000)
    networks = instantiate(node, _convert_="all").networks((3, 32, 32))
    assert [len(layer.weight) for layer in networks.encoder.down] == [32, 64, 128, 256]
    assert networks(torch.rand(1, 3, 32, 32), torch.ones(1, 100))[1].shape == (1, 100)
