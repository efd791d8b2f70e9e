"""WaNet: the warp's numbers, what a batch looks like, what is refused, and whole runs."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

from backdoor.attacks import AllToAll, AllToOne, CleanLabel, Means, PoisonGroup, PoisonPlan, SourceSpecific
from backdoor.attacks.controlled import count_of
from backdoor.attacks.wanet import WaNetTraining, noise_group
from backdoor.data.loader import Batch
from backdoor.errors import UserError
from backdoor.triggers import Patch, Warp
from helpers.command import QUICK, read_json
from helpers.configs import composed
from helpers.contexts import same, small_context
from helpers.observing import hearing
from helpers.surrogate import digits, tiny_cnn

RUN = (*QUICK, "attack=wanet", "defense=none")


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
    with pytest.raises(Killed), hearing(kill):
        fit("killed", checkpoint_s=0.0)
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
    reloaded = attack.attack_set(data.test.open(), 10).split
    cfg.attack.trigger.seed = 0
    wanted = instantiate(cfg.attack, _convert_="all").attack_set(data.test.open(), 10).split
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
