"""Chains of stages: checked first, controls aside, artifacts shared by whoever begins alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from backdoor.errors import UserError
from backdoor.experiment.evaluator import Evaluator
from backdoor.stages import Fit, Outcome, Pipeline, Stage, Step, check_chain
from backdoor.state import State, Truth
from backdoor.store.store import Store
from backdoor.training import Classifier
from helpers.command import QUICK, read_json
from helpers.contexts import small_context, small_state


class Mark(Stage):
    """A stage that writes what it saw into a finding, and counts how often it ran."""

    enabled = True

    def __init__(self, finding: str, *, requires=(), control=False) -> None:
        self.requires, self.provides, self.control = frozenset(requires), frozenset({finding}), control
        self.finding, self.ran = finding, 0

    def run(self, state: State, context, *, name, work) -> Outcome:
        self.ran += 1
        seen = ",".join(sorted(state.findings))
        return Outcome(replace(state, findings={**state.findings, self.finding: f"{name} after [{seen}]"}))


def step(name: str, **options) -> Step:
    return Step(name, Mark(name, **options), {"mark": name})


def pipeline(root, keys=None, common="same") -> Pipeline:
    return Pipeline(Store(root), small_context(), keys={"train": "rows", **(keys or {})}, common=common)


@pytest.mark.parametrize(
    ("need", "hint"),
    [
        ("reserved", "set reserved, for instance reserved=0.05"),
        ("suspect", "attack.isolated must name an isolation"),
        ("model", "an earlier stage must train one"),
        ("other", "add a stage that provides other"),
    ],
)
def test_a_need_that_is_not_met_is_refused_with_a_hint_before_any_stage_runs(tmp_path, need, hint):
    steps = [step("first"), step("second", requires=[need])]
    with pytest.raises(UserError, match=f"stage second needs {need}.*{hint}"):
        check_chain(steps, {"train"}, "defense=test")
    with pytest.raises(UserError, match=f"stage second needs {need}"):
        pipeline(tmp_path).run(small_state(), steps, lambda finished: None)
    assert steps[0].stage.ran == 0


def test_what_a_control_provides_does_not_count():
    steps = [step("control", control=True), step("second", requires=["control"])]
    with pytest.raises(UserError, match="second needs control"):
        check_chain(steps, {"train"}, "defense=test")
    check_chain([step("first"), step("second", requires=["first"])], {"train"}, "defense=test")


def test_a_control_is_reported_and_does_not_feed_the_next_stage(tmp_path):
    seen = {}
    steps = [step("first"), step("control", requires=["first"], control=True), step("last", requires=["first"])]
    state = pipeline(tmp_path).run(small_state(), steps, lambda end: seen.update({end.step.name: end.state.findings}))
    assert seen["control"]["control"] == "control after [first]"
    assert state.findings == {"first": "first after []", "last": "last after [first]"}


class Reads(Mark):
    """A stage that puts what it reads into the finding `seen`."""

    def __init__(self, read, *, requires=(), **attributes) -> None:
        super().__init__("seen", requires=requires)
        self.read = read
        vars(self).update(attributes)

    def run(self, state: State, context, *, name, work) -> Outcome:
        return Outcome(replace(state, findings={**state.findings, "seen": self.read(state, context), "besides": 1}))


def test_a_stage_gets_no_more_than_it_declares(tmp_path):
    """Else its key would not change with what it reads, and it would be a hit after that has changed."""
    whole = replace(small_state(), model=small_context().make_model(), reserved=small_state().train)
    inputs = {"images": "pixels", "model": "victim", "reserved": "trusted"}

    def seen(read, **attributes):
        chain = [step("first"), Step("reader", Reads(read, **attributes), {})]
        state = pipeline(tmp_path / str(len(list(tmp_path.iterdir()))), inputs, {}).run(whole, chain, lambda end: None)
        assert "besides" not in state.findings  # it provides no such thing
        assert torch.equal(state.train.labels, whole.train.labels)
        assert state.model is whole.model
        return state.findings["seen"]

    def first(state, context):
        return state.findings["first"]

    def fresh(state, context):
        return len(list(context.make_model().parameters()))

    with pytest.raises(UserError, match=r"stage reader: reads first, which it does not declare.*`requires`"):
        seen(first)
    assert seen(first, requires=["first"]) == "first after []"
    assert seen(lambda state, context: [state.model, state.reserved, state.findings.get("absent")]) == [None] * 3
    assert seen(lambda state, context: int(state.train.labels.max())) == 2
    assert seen(lambda state, context: int(state.train.labels.max()), reads="images") == 0
    assert seen(fresh) > 0
    with pytest.raises(UserError, match=r"stage reader: makes a model of the run, which it `ignores`"):
        seen(fresh, ignores=frozenset({"model"}))


def test_stages_are_shared_by_their_inputs_alone(tmp_path):
    hits = {}

    def run(name: str, middle: str, **keys: str) -> None:
        chain = [step("alone"), step(middle), step("needs", requires=[middle])]
        ends = []
        pipeline(tmp_path, keys).run(small_state(), chain, ends.append)
        hits[name] = [end.hit for end in ends]

    run("first", "one")
    run("again", "one")
    run("other middle", "two")
    run("other victim", "one", model="another")
    run("other data", "one", train="other rows")
    assert hits == {
        "first": [False, False, False],
        "again": [True, True, True],
        "other middle": [True, False, False],
        "other victim": [True, True, True],  # no stage of this chain looks at the model
        "other data": [False, False, False],
    }


def test_a_stage_after_another_model_is_made_anew(tmp_path):
    """The key holds the keys of the inputs, so that a changed beginning changes all that follows from it."""

    def ends(epochs: int) -> list[bool]:
        found: list[bool] = []
        make = {"module": lambda **kwargs: Classifier(lr=0.1, **kwargs), "batch_size": 10}
        steps = [
            Step("train", Fit(epochs=epochs, **make), {"epochs": epochs}),
            Step("tune", Fit(epochs=1, model="current", **make), {"epochs": 1}),
        ]
        pipeline(tmp_path).run(small_state(), steps, lambda end: found.append(end.hit))
        return found

    assert [ends(1), ends(1), ends(2), ends(1)] == [
        [False, False],
        [True, True],
        [False, False],
        [True, True],
    ]


def test_a_stage_from_the_store_gives_the_same_model(tmp_path):
    stage = Fit(epochs=2, module=lambda **kwargs: Classifier(lr=0.1, **kwargs), batch_size=10)
    ends = []
    for _ in range(2):
        pipeline(tmp_path).run(small_state(), [Step("train", stage, "same")], ends.append)
    made, loaded = ends
    assert (made.hit, loaded.hit) == (False, True)
    assert made.history == loaded.history
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.state.model(images), loaded.state.model(images))


@pytest.fixture
def threads():
    """Sets torch's threads, which are as before when the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_hit_that_was_made_with_other_threads_or_versions_is_said(tmp_path, threads, monkeypatch):
    """Sums in another order give other digits; the key has neither, so that machines can share a store."""
    stage = Fit(epochs=1, module=lambda **kwargs: Classifier(lr=0.1, **kwargs), batch_size=10)
    said, ends = [], []

    def run() -> dict:
        chain = Pipeline(Store(tmp_path), small_context(say=said.append), keys={"train": "rows"}, common="same")
        chain.run(small_state(), [Step("train", stage, "same")], ends.append)
        test = Evaluator(Truth(small_state().train), monitor_images=0, precision="fp32", channels_last=False)
        return test.stage(ends[-1])

    threads(1)
    assert "stored_with" not in run()
    assert "stored_with" not in run()
    assert said == []
    threads(2)
    assert run()["stored_with"] == {"threads": 1}
    (line,) = said
    assert line.startswith("train: from the store, made with threads 1 (here 2);")
    threads(1)
    monkeypatch.setattr("backdoor.stages.made_with.versions", lambda: {"torch": "99"})
    assert run()["stored_with"] == {"torch": torch.__version__}
    assert [end.hit for end in ends] == [False, True, True, True]


def stored(folder) -> dict[str, bool]:
    return {stage["name"]: stage["stored"] for stage in read_json(folder)["stages"]}


def test_runs_share_what_begins_alike(command, tmp_path):
    """abl, then abl with other unlearning, without fine-tuning, and abl_joint: isolation is trained once."""
    cache = tmp_path / "cache"
    runs = {
        "abl": ("defense=abl",),
        "longer": ("defense=abl", "defense.stages.unlearn.epochs=4"),
        "short": ("defense=abl", "~defense.stages.finetune"),
        "joint": ("defense=abl_joint",),
        "isolated otherwise": ("defense=abl", "defense.isolation_ratio=0.1"),
    }
    found = {}
    for name, words in runs.items():
        folder = tmp_path / name.replace(" ", "_")
        status, _, said = command(*QUICK, *words, f"hydra.run.dir={folder}", cache=cache)
        assert status == 0, said
        found[name] = stored(folder)
    old = {"victim": True, "isolate": True}
    assert not any(found["abl"].values())
    assert found["longer"] == {**old, "finetune": True, "control": False, "unlearn": False}
    assert found["short"] == {**old, "control": False, "unlearn": False}
    assert found["joint"] == {**old, "joint": False}
    assert found["isolated otherwise"] == {
        "victim": True,
        "isolate": False,
        "finetune": False,
        "control": False,
        "unlearn": False,
    }
    assert len([path for path in (cache / "victim").iterdir() if path.is_dir()]) == 1
