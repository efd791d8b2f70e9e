"""Types, ranges and kinds of settings: each wrong value is one line that names its key, and nothing is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from omegaconf import OmegaConf

from backdoor.checking.types import check_types, faults
from backdoor.configs.command import check_job, read_command
from backdoor.configs.composer import Composer
from backdoor.configs.explain import explain
from backdoor.experiment.run import check
from backdoor.experiment.settings import Settings
from helpers.configs import REQUIRED, choices, composed

COUNT = "expected a whole number of at least 1"
WRONG = {
    "data.mean=[a,b,c]": "data.mean.0=a: expected a number",
    "data.split_seed=abc": "data.split_seed=abc: expected a whole number from 0",
    "data.image_size=100000": "data.image_size=100000: expected a whole number from 1 to 4096",
    "data.limit.train=abc": f"data.limit.train=abc: {COUNT}, or null",
    "data.recipe.lr=abc": "data.recipe.lr=abc: expected a number of at least 0",
    "data.recipe.lr=inf": "data.recipe.lr=inf: expected a number of at least 0",
    "label_map=source_specific attack.label_map.sources=1": "attack.label_map.sources=1: expected a list",
    "label_map=all_to_all attack.label_map.shift=0.5": "attack.label_map.shift=0.5: expected a whole number",
    "attack.ratio=.nan": "attack.ratio=.nan: expected a number from 0 to 1",
    "attack.target=true": "attack.target=true: expected a whole number",
    "attack.trigger=5": "attack.trigger=5: expected one of Trigger",
    "attack.groups.poison.trigger=null": "attack.groups.poison.trigger=null: expected a trigger",
    "model=small_cnn model.width=1.5": f"model.width=1.5: {COUNT}",
    "victim.epochs=1.5": f"victim.epochs=1.5: {COUNT}",
    "victim.epochs=true": f"victim.epochs=true: {COUNT}",
    "victim.augment=5": "victim.augment=5: expected a text",
    "victim.module.momentum=2": "victim.module.momentum=2: expected a number of at least 0 and below 1",
    "defense.control=2": "defense.control=2: expected true or false",
    "defense=[abl,ft]": "defense=[abl,ft]: expected one choice, got a list; -m defense=abl,ft runs each",
    "defense=nc defense.stages.invert.epochs=1.5": f"defense.stages.invert.epochs=1.5: {COUNT}",
    "defense=fct defense.stages.score.transforms=rotate": "defense.stages.score.transforms=rotate: expected a list",
    "defense=dst defense.views.flip=5": "defense.views.flip=5: expected a number from 0 to 1",
    "trainer.checkpoint_s=abc": "trainer.checkpoint_s=abc: expected a number of at least 0",
    "trainer.checkpoint_s=-1": "trainer.checkpoint_s=-1: expected a number of at least 0",
    "trainer.channels_last=maybe": "trainer.channels_last=maybe: expected true or false",
    "trainer.device=meta": "trainer.device=meta: not available here; use auto, cpu",
    "store.dir=5": "store.dir=5: expected a text, or null (a number as text is '\"5\"')",
    "store=null": "store=null: expected a mapping",
    "threads=100000": "threads=100000: expected a whole number from 1 to 1024",
    "seed=1e23": "seed=1e+23: expected a whole number from 0 to 9223372036854775807",
    "seed=-1": "seed=-1: expected a whole number from 0 to 9223372036854775807",
    "seed=1000000000000000000000": "seed=1000000000000000000000: expected a whole number from 0",
    "reserved=true": "reserved=true: expected a number",
    "progress=5": "progress=5: expected true or false",
    "model=null": "model=null: expected the name of a choice",
    "+trainer.epochs=3": "trainer.epochs: no such setting; ",
    "+store.root=x": "store.root: no such setting; ",
    "attack.trigger=null": "attack.trigger=null: expected a trigger",
    "defense=ft defense.stages.finetune.rows=[]": "defense.stages.finetune: rows=[]: expected at least one of ",
    "~model": "model: required, and nothing was chosen; write model=VALUE",
    "~data._target_": "data: has no _target_; is the name misspelt?",
    "model=small_cnn model.width=100000": "model: its weights alone take",
}
KINDS = {
    "model": "Module",
    "data": "Source",
    "attack": "Attack",
    "attack.trigger": "Trigger",
    "attack.label_map": "LabelMap",
    "victim": "Stage",
    "victim.module": "LightningModule",
    "defense.stages.isolate": "Stage",
    "defense.stages.isolate.callbacks.isolation": "Callback",
    "logger": "RunLogger",
}


COMPOSER = Composer(read_command([]))  # shares what it composed among the tests


def refusal(*words: str) -> str | None:
    """The line that a user would read for a command, or None for one that is fine."""
    command = read_command(words)
    try:
        check(check_job(command, COMPOSER.compose).cfg)
    except Exception as error:
        return explain(error, command) or repr(error)
    return None


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_value_is_one_line_with_its_key(words: str) -> None:
    assert str(refusal(*words.split())).startswith(WRONG[words])


@pytest.mark.parametrize("group", ["attack", "defense", "data", "model"])
def test_a_choice_of_ones_own_that_is_a_list_is_told_so(command, tmp_path, group: str) -> None:
    (tmp_path / "own" / group).mkdir(parents=True)
    (tmp_path / "own" / group / "bad.yaml").write_text("- 1\n")
    status, _, said = command("--config-dir", "own", f"{group}=bad", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert said.count("\n") == 1
    if group in ("attack", "model"):  # references into the others fail before
        assert said.startswith(f"error: {group}=[1]: expected ")


@pytest.mark.parametrize("place", KINDS)
def test_what_is_of_another_kind_is_refused_and_not_called(place: str, tmp_path: Any) -> None:
    for target in ("os.system", "shutil.rmtree", "backdoor.errors.suggest"):
        expected = f"{place}._target_={target}: expected a class of {KINDS[place]}, or a function"
        assert str(refusal(f"{place}._target_={target}")).startswith(expected)
    assert refusal(f"{place}._target_=5") == f"{place}._target_=5: expected the dotted name of a class or a function"


@pytest.mark.parametrize("place", ["model", "data", "data.recipe", "attack.trigger", "attack.groups.poison", "victim"])
def test_a_call_in_an_argument_that_nobody_takes_is_not_made(place: str, tmp_path: Any) -> None:
    folder = tmp_path / "made"
    line = refusal(f"+{place}.more._target_=os.mkdir", f"+{place}.more.path={folder}")
    assert str(line).startswith(f"{place}.more")
    assert not folder.exists()


def test_no_logger_is_none() -> None:
    assert refusal("~logger") is None


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Path and value of everything below a plain config that is no mapping and no list."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, (*path, key)) if not key.startswith("_") else ()
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from leaves(one, (*path, number))
    else:
        yield path, value


def other_types(value: Any) -> list[Any]:
    """Values that no annotation for `value` can allow."""
    if isinstance(value, bool):
        return ["abc", 2, 0.5]
    if isinstance(value, int):
        return ["abc", True]
    if isinstance(value, float):
        return ["abc", True]
    return [True] if isinstance(value, str) else []


# Not arguments of what `_target_` names: kept for references, where they are checked.
FREE = {("data", "recipe"), ("defense", "views")}


@pytest.mark.parametrize(
    "choice",
    [f"{group}={name}" for group in ("attack", "defense", "data", "model", "trainer") for name in choices(group)],
)
def test_each_number_of_each_config_refuses_other_types(choice: str) -> None:
    group = choice.partition("=")[0]
    cfg = composed(choice, *REQUIRED.get(choice, ()))
    whole: Any = OmegaConf.to_container(cfg, resolve=True)
    check_types(OmegaConf.create(whole), Settings)
    accepted, hint = [], get_type_hints(Settings, include_extras=True)[group]
    for path, value in leaves(whole[group], (group,)):
        if path[:2] in FREE or (group == "defense" and path[1] not in ("stages", "name")):
            continue
        for wrong in other_types(value):
            node = whole
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = wrong
            fault = next(faults(whole[group], hint, (group,)), None)
            if fault is None or fault.path[: len(path)] != path[: len(fault.path)]:
                accepted.append((path, wrong))
            node[path[-1]] = value
    assert accepted == []
