"""WaNet: the warp's numbers, what a batch looks like, what is refused, and whole runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from backdoor.attacks import AllToAll, AllToOne, CleanLabel, Means, PoisonGroup, PoisonPlan, SourceSpecific
from backdoor.attacks.controlled import count_of
from backdoor.attacks.wanet import WaNetTraining, noise_group
from backdoor.data.loader import Batch
from backdoor.errors import UserError
from backdoor.triggers import Patch, Warp
from conftest import QUICK, read_json
from helpers_surrogate import digits, tiny_cnn
from test_configs import composed
from test_context import same, small_context

RUN = (*QUICK, "attack=wanet", "defense=none")


def photos(count: int = 4, side: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(side + channels)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 30, 48)])
def test_a_constant_image_stays_as_it_is_borders_included(level, shape):
    image = torch.full((2, *shape), level, dtype=torch.uint8)
    for trigger in (Warp(), Warp(strength=5.0, seed=3), Warp(clamp=False, padding="border")):
        assert torch.equal(trigger(image), image)
        assert torch.equal(trigger.noisy()(image, torch.arange(2)), image)
        assert (trigger(image / 255) - image / 255).abs().max() < 1e-6


@pytest.mark.parametrize("settings", [{}, {"rounding": "trunc"}, {"points": 8, "strength": 3.0}, {"clamp": False}])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 40, 28)])
def test_whole_batches_get_what_grid_sample_gives_one_image(settings, shape):
    images = torch.cat([photos(5, side=max(shape[1:]), channels=shape[0])[..., : shape[1], : shape[2]]] * 30)
    warp = Warp(**settings)
    grid = warp.grid(*shape[1:])
    for row in (0, 77, 149):
        level = F.grid_sample(images[row : row + 1].float(), grid, mode="bilinear", align_corners=True)[0]
        slow = (level + (0.5 if warp.rounding == "round" else 0)).floor().clamp(0, 255).to(torch.uint8)
        assert torch.equal(warp(images)[row], slow)


def test_without_the_clamp_zero_padding_paints_black_or_the_mean_colour():
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    black = Warp(clamp=False, strength=3.0)(grey)
    assert black.min() < 64
    assert torch.equal(black[..., 4:-4, 4:-4], grey[..., 4:-4, 4:-4])  # away from the borders
    mean = Warp(clamp=False, strength=3.0, space="normalised", mean=[1.0, 0.5, 0.5])(grey)
    assert mean[:, 0].max() > 200
    assert (mean[:, 1:].int() - 128).abs().max() <= 1


def test_the_shift_has_the_size_of_the_card():
    for side, average in ((32, 0.167), (64, 0.171), (224, 0.175)):
        pixels = (Warp().grid(side, side) - Warp(strength=0).grid(side, side)) * (side - 1) / 2
        assert pixels.abs().mean() == pytest.approx(average, abs=6e-4)
        assert pixels.abs().max() == pytest.approx(0.5, abs=0.02)
    images = photos() / 255
    assert (Warp(strength=0)(images) - images).abs().max() < 1e-5
    assert torch.equal(Warp(strength=0)(photos()), photos())


def test_relative_keeps_the_share_of_a_larger_image():
    share = [Warp(relative=True, clamp=False).field(side, side).abs().mean() for side in (32, 64, 128)]
    assert share[0] == pytest.approx(float(share[1]), rel=0.02) == pytest.approx(float(share[2]), rel=0.02)


def test_each_pixel_is_read_where_the_field_says():
    """Against a loop over pixels with bilinear weights written out."""
    side, trigger = 8, Warp(strength=4.0, seed=2)
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    places = (trigger.grid(side, side)[0] + 1) / 2 * (side - 1)
    expected = torch.zeros(side, side)
    for row in range(side):
        for column in range(side):
            x, y = places[row, column].tolist()
            for near_y in range(int(y), min(int(y) + 2, side)):
                for near_x in range(int(x), min(int(x) + 2, side)):
                    weight = (1 - abs(x - near_x)) * (1 - abs(y - near_y))
                    expected[row, column] += weight * image[0, 0, near_y, near_x]
    assert torch.allclose(trigger(image)[0, 0], expected, atol=1e-5)
    assert (trigger(image)[0, 0] - image[0, 0]).abs().max() > 0.1


def test_noise_differs_by_row_and_comes_again():
    noisy, images = Warp().noisy(), photos(1).repeat(3, 1, 1, 1)
    first = noisy(images, torch.tensor([5, 9, 5]))
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(noisy(images[1:2], torch.tensor([9]))[0], first[1])
    assert not torch.equal(first[0], Warp()(images)[0])
    offsets = noisy.jitter(images, torch.arange(3)) * 32
    assert offsets.min() < -0.99
    assert offsets.max() > 0.99
    assert offsets.abs().max() <= 1
    with pytest.raises(ValueError, match="index"):
        noisy(images)


def test_the_field_is_saved_and_another_seed_draws_another():
    assert set(Warp().state_dict()) == {"control"}
    other = Warp(seed=1)
    assert not torch.equal(other.control, Warp().control)
    other.load_state_dict(Warp().state_dict())
    assert torch.equal(other(photos()), Warp()(photos()))


def training(ratio=0.1, rho=2.0, label_map=None, **more) -> WaNetTraining:
    poison = PoisonGroup(ratio, label_map or AllToOne(target=0), Warp())
    state = digits(120)
    return WaNetTraining(
        model=tiny_cnn(), state=state, poison=poison, noise=noise_group(poison, cross_ratio=rho), lr=0.05, **more
    )


def batch_of(count: int) -> Batch:
    train = digits(120).train
    return Batch(train.images[:count] / 255, train.labels[:count], torch.arange(count))


@pytest.mark.parametrize(("size", "poisoned", "noisy"), [(64, 6, 12), (32, 3, 6), (10, 1, 2)])
def test_a_batch_holds_floor_p_b_poisoned_and_rho_times_noisy_rows(size, poisoned, noisy):
    module, batch = training(label_map=AllToAll()), batch_of(size)
    changed = module.changed(batch)
    same_pixels = (changed.images == batch.images).flatten(1).all(1)
    assert (~same_pixels).nonzero().flatten().tolist() == list(range(poisoned + noisy))
    assert torch.equal(changed.labels[:poisoned], (batch.labels[:poisoned] + 1) % 10)
    assert torch.equal(changed.labels[poisoned:], batch.labels[poisoned:])
    assert torch.equal(changed.images[:poisoned], Warp()(batch.images[:poisoned]))
    again = module.changed(batch)
    assert torch.equal(again.images[:poisoned], changed.images[:poisoned])  # the same field
    assert not torch.equal(again.images[poisoned : poisoned + noisy], changed.images[poisoned : poisoned + noisy])


def test_where_the_floor_is_zero_the_expectation_is_right():
    generator = torch.Generator().manual_seed(0)
    drawn = [count_of(0.128, generator) for _ in range(4000)]
    assert set(drawn) == {0, 1}
    assert sum(drawn) / 4000 == pytest.approx(0.128, abs=0.02)
    assert {count_of(12.8, generator) for _ in range(20)} == {12}
    assert {count_of(0.0, generator) for _ in range(20)} == {0}


def test_augmentation_comes_after_the_warp():
    module, batch = training(ratio=0.33, augment="flip"), batch_of(60)
    shown = []
    module.model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].clone()))
    module.log_batch = lambda *_: None
    module.training_step(batch, 0)
    warped = Warp()(batch.images[:19])
    flipped = (shown[0][:19] == warped.flip(3)).flatten(1).all(1)
    plain = (shown[0][:19] == warped).flatten(1).all(1)
    assert (flipped | plain).all()
    assert flipped.any()
    assert plain.any()


def test_what_the_training_cannot_follow_is_refused_with_the_reason():
    def group(label_map, **settings):
        return PoisonGroup(settings.pop("ratio", 0.1), label_map, settings.pop("trigger", Warp()), **settings)

    for label_map in (CleanLabel(target=0), SourceSpecific(target=0, sources=[1, 2])):
        with pytest.raises(UserError, match=r"some classes only.*whatever their class.*all_to_one"):
            noise_group(group(label_map))
    to_zero = AllToOne(target=0)
    with pytest.raises(UserError, match=r"attack\.eligible=non_target.*attack\.eligible=all"):
        noise_group(group(to_zero, eligible="non_target"))
    with pytest.raises(UserError, match=r"attack\.ratio_of=eligible.*attack\.ratio_of=train"):
        noise_group(group(to_zero, ratio_of="eligible"))
    with pytest.raises(UserError, match=r"needs the trigger warp, got Patch"):
        noise_group(group(to_zero, trigger=Patch(pattern=[[255]])))
    with pytest.raises(UserError, match=r"attack\.ratio=0\.4.*1\.2.*0\.3333"):
        noise_group(group(to_zero, ratio=0.4))
    with pytest.raises(UserError, match=r"attack\.trigger\.mean"):
        Warp(space="normalised")
    with pytest.raises(UserError, match=r"attack\.trigger\.points=4.*3 pixels"):
        Warp().check((3, 3, 40))


def test_a_killed_victim_goes_on_to_the_same_weights(tmp_path):
    class Killed(Exception):
        pass

    def kill(row):
        if row["epoch"] == 2:
            raise Killed

    def fit(folder, **context):
        module = training(augment="crop_flip")
        small_context(**context).fit(
            module, module.state.train, name="victim", work=tmp_path / folder, epochs=3, batch_size=32
        )
        return module.state_dict()

    whole = fit("whole")
    with pytest.raises(Killed):
        fit("killed", on_epoch=kill, checkpoint_s=0.0)
    assert (tmp_path / "killed" / "resume.ckpt").exists()
    assert same(whole, fit("killed"))


def test_a_run_trains_the_victim_once_and_its_trigger_is_the_saved_one(command, tmp_path, cache_dir):
    folder = tmp_path / "runs"
    for name, victim in (("first", "trained"), ("second", "hit")):
        status, _, said = command(*RUN, f"store.dir={tmp_path / 'store'}", f"hydra.run.dir={folder / name}")
        assert status == 0, said
        assert read_json(folder / name, "status.json") == {"state": "done", "victim": victim}
    first, second = (read_json(folder / name) for name in ("first", "second"))
    assert first["final"] == second["final"]
    assert 0 <= first["crafting"][0]["findings"]["cross_accuracy"] <= 1
    plan = PoisonPlan.load(folder / "first" / "plan.npz")
    assert [int((plan.role == role).sum()) for role in (0, 1)] == [144, 287]
    assert plan.roles == ("poison", "noise")

    cfg = OmegaConf.load(folder / "first" / "config.yaml")
    cfg.attack.trigger.seed = 77  # another field, which the saved one replaces
    data = instantiate(cfg.data, _convert_="all").load(cache_dir, progress=False)
    attack = instantiate(cfg.attack, _convert_="all")
    attack.trigger.load_state_dict(load_file(folder / "first" / "trigger.safetensors"))
    reloaded, _ = attack.attack_set(data.test.open(), 10)
    cfg.attack.trigger.seed = 0
    wanted, _ = instantiate(cfg.attack, _convert_="all").attack_set(data.test.open(), 10)
    assert torch.equal(reloaded.images, wanted.images)


def test_the_fixed_train_set_has_true_labels_on_noise_rows_which_are_no_poison(cache_dir):
    cfg = composed("attack=wanet")
    data = instantiate(cfg.data, _convert_="all").load(cache_dir, progress=False)
    attack, clean = instantiate(cfg.attack, _convert_="all"), data.train.open()
    images = clean.images.clone()
    poisoned = attack.prepare(data, clean, data.test.open(), Means(0, cache_dir))
    plan = poisoned.plan
    noise, poison = plan.rows[plan.role == 1], plan.rows[plan.role == 0]
    assert torch.equal(poisoned.train.labels[noise], data.train.labels[noise])
    assert (poisoned.train.labels[poison] == 0).all()
    assert poisoned.truth.poisoned.nonzero().flatten().tolist() == poison.tolist()
    assert torch.equal(poisoned.train.images[poison], Warp()(images[poison]))
    assert torch.equal(poisoned.train.images[noise], Warp().noisy()(images[noise], noise))


def test_the_poison_only_variant_has_fixed_rows_alone(command, tmp_path):
    status, _, said = command(*QUICK, "attack=wanet_poison_only", "defense=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    assert PoisonPlan.load(tmp_path / "run" / "plan.npz").roles == ("poison",)
    assert "crafting" not in read_json(tmp_path / "run")
    assert (tmp_path / "run" / "trigger.safetensors").exists()
