"""What a stage hands on as a model: what is measured is what was saved, and a model that was destroyed is told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.errors import UserError
from backdoor.experiment.evaluator import Evaluator
from backdoor.metrics.names import shown_name
from backdoor.models.base import ImageClassifier
from backdoor.stages import Finished, Fit, Outcome, Pipeline, Stage, Step
from backdoor.state import State, Truth
from backdoor.store.store import Store
from backdoor.store.weights import load_weights, save_weights
from backdoor.training import Classifier
from backdoor.training.context import RunContext
from backdoor.training.inference import predict
from helpers.contexts import small_context
from helpers.surrogate import digits, tiny_cnn

CONTEXT = replace(small_context(), new_model=tiny_cnn)


class Blur(nn.Module):
    """A fixed blur, mixed with the image by a share that can be learnt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.share = width, nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        blurred = F.avg_pool2d(images, self.width, stride=1, padding=self.width // 2)
        return self.share * blurred + (1 - self.share) * images


class Shrink(nn.Module):
    """It has no tensor."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 3, stride=1, padding=1)


class Purify(Stage):
    """A stage that puts what `make` gives before the model, and moves it as a training would."""

    requires = provides = frozenset({"model"})

    def __init__(self, make) -> None:
        self.make = make

    def preprocess(self, state: State) -> nn.Module:
        return self.make()

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        model = tiny_cnn()
        model.load_state_dict(state.model.state_dict())
        model.preprocess = self.preprocess(state)
        for value in model.preprocess.parameters():
            value.data += 0.4
        return Outcome(replace(state, model=context.place(model)))


class Around(nn.Module):
    """A model behind another module, as published purifiers have it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.purifier, self.model = Blur(5), model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.purifier(images))


class Changed(Stage):
    """A stage that hands on what `change` makes of the model."""

    requires = provides = frozenset({"model"})

    def __init__(self, change) -> None:
        self.change = change

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        model = tiny_cnn()
        model.load_state_dict(state.model.state_dict())
        return Outcome(replace(state, model=self.change(model) or model))


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> State:
    stage = Fit(module=partial(Classifier, lr=0.05), epochs=6, batch_size=20)
    return stage.run(digits(300), CONTEXT, name="victim", work=tmp_path_factory.mktemp("victim")).state


def chain(root: Path, state: State, *stages, context: RunContext = CONTEXT) -> list[Finished]:
    """The stages, each an artifact below `root`."""
    pipeline = Pipeline(Store(root), context, keys={"train": "rows", "model": "victim"}, common={})
    ends: list[Finished] = []
    pipeline.run(state, [Step(f"stage{place}", stage, place) for place, stage in enumerate(stages)], ends.append)
    return ends


def logits(model: nn.Module, state: State) -> Tensor:
    with torch.no_grad():
        return model.eval()(state.train.images.float() / 255)


def test_a_purifier_is_saved_loaded_and_measured_with_its_model(tmp_path, victim):
    """By the stage that made it, by a stage that trains on from there, and by both once more from the store."""
    tune = Fit(module=partial(Classifier, lr=0.001), model="current", epochs=1, batch_size=50)
    made, again = (chain(tmp_path, victim, Purify(lambda: Blur(5)), tune) for _ in range(2))
    assert [(end.hit, found.hit) for end, found in zip(made, again, strict=True)] == [(False, True)] * 2
    expected = Purify(lambda: Blur(5)).run(victim, CONTEXT, name="purify", work=tmp_path).state.model
    assert torch.equal(logits(made[0].state.model, victim), logits(expected, victim))
    assert not torch.allclose(logits(made[0].state.model, victim), logits(victim.model, victim), atol=1e-2)
    assert isinstance(made[1].state.model.preprocess, Blur)
    assert made[1].state.model.preprocess.width == 5
    for end, found in zip(made, again, strict=True):
        assert torch.equal(logits(end.state.model, victim), logits(found.state.model, victim))
    measured = [Evaluator(Truth(victim.train), monitor_images=0, precision="fp32", channels_last=False) for _ in "12"]
    first, second = (one.stage(end[0])["c_acc"] for one, end in zip(measured, (made, again), strict=True))
    assert first == second == predict(expected, victim.train).eq(victim.train.labels).double().mean().item()


def test_a_file_with_a_purifier_is_not_loaded_without_it(tmp_path, victim):
    [end] = chain(tmp_path, victim, Purify(lambda: Blur(5)))
    [path] = tmp_path.glob("stage/*/model.safetensors")
    bare = tiny_cnn()
    before = {name: value.clone() for name, value in bare.state_dict().items()}
    with pytest.raises(
        UserError, match=r"^attack\.model=.*: holds a model that .* \(preprocess\.share\), without"
    ) as said:
        load_weights(bare, path)
    assert "\n" not in str(said.value)
    assert all(torch.equal(value, before[name]) for name, value in bare.state_dict().items())
    bare.preprocess = Blur(5)
    load_weights(bare, path)
    assert torch.equal(logits(bare, victim), logits(end.state.model, victim))


def test_a_model_without_a_purifier_has_the_tensors_that_it_had(tmp_path):
    save_weights(tiny_cnn(), tmp_path / "bare.safetensors")
    assert not [name for name in load_file(tmp_path / "bare.safetensors") if "preprocess" in name]
    assert tiny_cnn().preprocess is None


def hooked(model: ImageClassifier) -> None:
    model.head.register_forward_hook(lambda part, given, result: -result)


def overridden(model: ImageClassifier) -> None:
    model.forward = lambda images: -model.head(model.features(images))


def clipped(model: ImageClassifier) -> None:
    place = next(name for name, part in model.backbone.named_children() if isinstance(part, nn.ReLU))
    setattr(model.backbone, place, nn.ReLU6())


def cleaned(model: ImageClassifier) -> None:
    model.preprocess = Blur(3)


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (Changed(Around), "is a Around and not the run's ImageClassifier"),
        (Changed(hooked), "has a hook on its head"),
        (Changed(overridden), "has a hook on its outside"),
        (Changed(clipped), "has torch.nn.modules.activation.ReLU6 as backbone."),
        (Changed(lambda model: nn.Sequential(Blur(3), model)), "is a Sequential and not"),
        (Changed(cleaned), "has test_stages_network.Blur as preprocess, where expected is nothing"),
        (Purify(Shrink), "has a preprocess without any tensor"),
    ],
)
def test_what_weights_do_not_tell_is_refused_when_it_is_saved(tmp_path, victim, stage, problem):
    with pytest.raises(UserError) as said:
        chain(tmp_path, victim, stage)
    assert str(said.value).startswith(f"stage stage0: its model {problem}")
    assert "ImageClassifier.preprocess" in str(said.value)
    assert not list(tmp_path.glob("stage/*/artifact.json"))


def test_a_stage_that_destroys_the_model_says_so_also_from_the_store(tmp_path, victim):
    said: list[str] = []

    def constant(model: ImageClassifier) -> None:
        model.head.bias.data[3] = 1e3

    context = replace(CONTEXT, say=said.append)
    stages = (Changed(lambda model: None), Changed(constant), Changed(constant))
    for hit in (False, True):
        said.clear()
        ends = chain(tmp_path, victim, *stages, context=context)
        assert [end.hit for end in ends] == [hit] * 3
        assert [end.collapse is not None for end in ends] == [False, True, False]  # the last has destroyed nothing
        [line] = [one for one in said if "collapsed" in one]
        assert line.startswith("stage1: the model has collapsed: before this stage it was right on ")
        entry = Evaluator(Truth(victim.train), monitor_images=0, precision="fp32", channels_last=False).stage(ends[1])
        assert shown_name(entry) == "stage1 (collapsed)"
