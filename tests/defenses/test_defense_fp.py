"""Fine-Pruning: what is the last convolution, which of its channels go and how many, and that they stay gone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor.defenses.fp import KeepPruned, PruneDormant, dormant_first, last_accepted, pruning_levels
from backdoor.defenses.fp.method import channel_activation
from backdoor.defenses.fp.replay import Activations
from backdoor.defenses.fp.stage import measure
from backdoor.defenses.fp.unit import find_unit, prune_channels
from backdoor.defenses.pruning import hold_out, lowest_accepted, rows_for, rows_to_hold_out
from backdoor.errors import UserError
from backdoor.models import preact_resnet18, torchvision_net
from backdoor.models.wide_resnet import WideResNet
from backdoor.stages import Fit
from backdoor.stages.artifact import load_outcome, save_outcome
from backdoor.state import Split
from backdoor.training import Classifier
from backdoor.training.inference import map_split, predict
from helpers.backdoor import context, network, poisoned_digits, victim

FACTS = {"num_classes": 10, "in_channels": 1, "image_size": 16, "mean": [0.3], "std": [0.4]}


@pytest.fixture(scope="module")
def attacked():
    state, test = poisoned_digits()
    return replace(state, model=victim(state)), test


def test_activation_against_a_loop():
    outputs = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
    found = channel_activation(outputs)
    for sample in range(3):
        for channel in range(4):
            slow = sum(max(0.0, value) for value in outputs[sample, channel].flatten().tolist()) / 10
            assert found[sample, channel].item() == pytest.approx(slow, rel=1e-5)


def test_order_levels_and_stop_by_hand():
    assert dormant_first(torch.tensor([3.0, 0.0, 1.0, 0.0])).tolist() == [1, 3, 2, 0]
    with pytest.raises(ValueError, match="finite"):
        dormant_first(torch.tensor([1.0, math.nan]))
    assert pruning_levels(5, 0.01) == [0, 1, 2, 3, 4]
    assert pruning_levels(10, 0.25) == [0, 3, 6, 9]
    assert pruning_levels(512, 0.01)[:3] == [0, 6, 12]
    assert last_accepted([0.9, 0.88, 0.85, 0.9], 0.86) == 1  # the later rise does not count
    assert last_accepted([0.9, 0.9], 0.86) == 1
    assert last_accepted([0.9, 0.5, 0.9], 0.86) == 0
    assert lowest_accepted(0.9, 0.04, "absolute") == pytest.approx(0.86)
    assert lowest_accepted(0.9, 0.1, "relative") == pytest.approx(0.81)
    assert [rows_for(drop) for drop in (0.04, 0.1, 0.0, 0.3)] == [25, 10, 1, 4]


def test_held_out_rows_are_apart_and_stratified():
    labels = torch.arange(100) % 4
    split = Split.of(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), labels)
    rest, held = hold_out(split, 0.2, 0)
    assert sorted([*rest.index.tolist(), *held.index.tolist()]) == list(range(100))
    assert held.labels.bincount().tolist() == [5, 5, 5, 5]
    assert hold_out(split, 0.2, 0)[1].index.equal(held.index)
    assert not hold_out(split, 0.2, 1)[1].index.equal(held.index)
    for share, least in ((0.2, 25), (0.001, 1), (0.999, 1)):
        with pytest.raises(UserError, match=r"reserved: 100 trusted rows.*expected at least"):
            hold_out(split, share, 0, least=least)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.36, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("least", [1, 10, 25])
def test_the_fewest_rows_of_which_enough_are_held_out(share, least):
    fewest = next(rows for rows in range(10**6) if least <= round(share * rows) < rows)  # slowly
    assert rows_to_hold_out(share, least) == fewest
    assert rows_to_hold_out(1 - 1e-9, 1) > 4e8  # and that at once


MODELS = {
    "small_cnn": (network, "backbone.8", "backbone.9"),
    "wrn": (lambda: WideResNet(depth=10, widen=1, **FACTS), "backbone.groups.2.0.conv2", None),
    "preact": (lambda: preact_resnet18(**FACTS), "backbone.groups.3.1.conv2", None),
    "resnet18": (
        lambda: torchvision_net(name="resnet18", **FACTS),
        "backbone.layer4.1.conv2",
        "backbone.layer4.1.bn2",
    ),
    "vgg19": (lambda: torchvision_net(name="vgg19", **FACTS), "backbone.features.34", None),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_last_convolution_and_each_level_as_if_pruned_alone(name):
    build, conv, norm = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    for part in model.modules():  # running statistics that are not 0 and 1
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    images = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8)
    unit = find_unit(model, images[:2].float() / 255)
    assert (unit.conv, unit.norm) == (conv, norm)
    labels = model(images.float() / 255).argmax(1)  # so that level 0 is always right
    held = Split.of(images, labels)
    pruned = [torch.arange(0), torch.arange(unit.channels // 2), torch.arange(unit.channels - 1)]
    fast = measure(model, unit, pruned, held)
    assert "forward" not in vars(model.get_submodule(unit.conv))
    slow = []
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for channels in pruned:
        model.load_state_dict(before)
        prune_channels(model, unit, channels)
        slow.append(float(predict(model, held).eq(labels).double().mean()))
        seen = map_split(Activations(model, unit), held, lambda values, _: values)
        assert seen[:, channels].abs().max().item() == 0 if len(channels) else True
    assert fast == slow
    assert fast[0] == 1.0


def test_models_without_a_last_convolution_are_refused():
    refused = pytest.raises(UserError, match=r"runs one convolution, and Fine-Pruning needs.*choose")
    with torch.device("meta"), refused:
        find_unit(torchvision_net(name="vit_b_16", **FACTS), torch.zeros(2, 1, 16, 16))
    with pytest.raises(UserError, match="no convolution"):
        find_unit(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), torch.zeros(2, 1, 16, 16))


def test_pruning_keeps_accuracy_and_the_incoming_model(attacked, tmp_path):
    state, test = attacked
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    stage = PruneDormant()
    outcome = stage.run(state, context(), name="prune", work=tmp_path)
    found = outcome.state.findings
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert 0 < found["pruned_channels"] < 32
    curve = found["pruning_curve"]
    level = curve["x"].index(curve["chosen"])
    assert curve["c_acc"][level] >= curve["c_acc"][0] - 0.04 - 1e-9
    assert level + 1 == len(curve["x"]) or curve["c_acc"][level + 1] < curve["lowest"]
    gone = {name: ~keep for name, keep in found["kept_channels"].items()}
    assert set(gone) == {"backbone.8.weight", "backbone.9.weight", "backbone.9.bias"}
    dormant = found["channel_activation"].argsort(stable=True)[: found["pruned_channels"]]
    for name, mask in gone.items():
        assert mask.nonzero().flatten().tolist() == sorted(dormant.tolist())
        assert outcome.state.model.get_parameter(name)[mask].abs().sum() == 0
    save_outcome(outcome, stage.provides, tmp_path, seconds=1.0)
    loaded, _ = load_outcome(state, tmp_path, context(), stage.provides)
    images = test.images.float() / 255
    assert torch.equal(loaded.state.model(images), outcome.state.model(images))
    tried = list(stage.tried(state, loaded.state))
    curve = loaded.state.findings["pruning_curve"]
    assert len(tried) == len(curve["x"])
    assert torch.equal(tried[curve["x"].index(curve["chosen"])](images), outcome.state.model(images))
    entry = {"tried": [{"asr": 0.5} for _ in tried]}
    assert stage.figures(loaded.state, tmp_path / "figures", "prune", entry)[0].stat().st_size > 1000


def test_fine_tuning_leaves_pruned_weights_at_zero(attacked, tmp_path):
    torch.manual_seed(0)
    model = WideResNet(depth=10, widen=1, **FACTS)
    unit = find_unit(model, torch.zeros(2, 1, 16, 16))
    masks = prune_channels(model, unit, torch.tensor([0, 3, 40]))
    pruned = replace(attacked[0], model=model, findings={"kept_channels": masks})

    def module(**given):
        return Classifier(lr=0.05, weight_decay=5e-4, **given)

    options = {"module": module, "model": "current", "rows": "reserved", "epochs": 1, "batch_size": 64}
    for callbacks, kept in (({"keep": KeepPruned}, True), ({}, False)):
        fit = Fit(requires=["kept_channels"], callbacks=callbacks, **options)
        assert fit.requires == {"reserved", "kept_channels", "model"}
        tuned = fit.run(pruned, context(), name="finetune", work=tmp_path).state.model
        rows = [tuned.get_parameter(name)[~keep] for name, keep in masks.items()]
        assert rows[0].shape == (3, 64, 3, 3)
        assert all((row == 0).all() for row in rows) == kept
        assert not torch.equal(tuned.head.weight, model.head.weight)


def test_nothing_is_pruned_if_the_first_step_costs_too_much(attacked, tmp_path):
    state, test = attacked
    said = []
    stage = PruneDormant(step=0.97, max_drop=0.04)  # 32 channels at once: one level, nothing to choose
    found = stage.run(state, context(say=said.append), name="prune", work=tmp_path).state
    assert found.findings["pruned_channels"] == 0
    assert "none of 32 channels" in said[0]
    assert torch.equal(predict(found.model, test), predict(state.model, test))


def test_debug_caps_the_levels(attacked, tmp_path):
    state, _ = attacked
    found = PruneDormant().run(state, context(max_batches=2), name="prune", work=tmp_path).state.findings
    assert len(found["pruning_curve"]["x"]) == 3


def test_bad_input(attacked, tmp_path):
    state, _ = attacked
    few = replace(state, reserved=state.reserved.take(torch.arange(20)))
    with pytest.raises(UserError, match=r"20 trusted rows.*hold out 10; expected at least 25"):
        PruneDormant().run(few, context(), name="prune", work=tmp_path)
    broken = context().make_model()
    nn.init.constant_(broken.backbone[0].weight, math.nan)
    with pytest.raises(UserError, match="stage prune: activations are no numbers"):
        PruneDormant().run(replace(state, model=broken), context(), name="prune", work=tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("max_drop", 1.0, "max_drop=1.0: expected a share"),
        ("max_drop", -0.1, "max_drop=-0.1"),
        ("max_drop", "much", "max_drop=much"),
        ("drop", "absolut", "did you mean 'absolute'"),
        ("step", 0, "step=0: expected a share"),
        ("validation", 1.0, "validation=1.0"),
        ("validation", True, "validation=True"),
    ],
)
def test_settings_are_refused(setting, value, match):
    with pytest.raises(UserError, match=match):
        PruneDormant(**{setting: value})
