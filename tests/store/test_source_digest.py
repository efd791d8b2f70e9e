"""An edited loss never gets yesterday's weights: keys hold a digest of the source that computes a stage."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from backdoor.store import source
from backdoor.store.source import closure, module_of, source_digest
from backdoor.sweep.forecast import run as plan
from backdoor.sweep.reuse import result_key
from helpers.command import QUICK, SRC, read_json

FILES = {
    "ghostly/__init__.py": "",
    "ghostly/loss.py": "def loss(x):\n    from ghostly.parts.inner import half\n    return half(x)\n",
    "ghostly/parts/__init__.py": "from . import sibling\n",
    "ghostly/parts/inner.py": "from .deeper.more import *\nimport mymath as m\n",
    "ghostly/parts/sibling.py": "NAME = 'ghostly.named.Thing'\n",
    "ghostly/parts/deeper/__init__.py": "",
    "ghostly/parts/deeper/more.py": "from ...top import *\n",
    "ghostly/top.py": "",
    "ghostly/named.py": "class Thing: ...\n",
    "ghostly/unrelated.py": "",
    "mymath.py": "",
    "site-packages/installed.py": "",
}


@pytest.fixture
def fresh() -> Callable[[], None]:
    """Forgets what was read: a process reads each file once, as it imports it once."""

    def forget() -> None:
        importlib.invalidate_caches()
        for cached in (source._digest, module_of, source.is_users, source.places, source.locate):
            cached.cache_clear()
        for cached in (source.read, source.imports):
            cached.cache_clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.setattr(source, "ROOTS", frozenset())  # the plug-in's part alone
    monkeypatch.setattr(source, "GLUE", frozenset())
    return tmp_path


COUNTS = [name for name in FILES if "unrelated" not in name and "installed" not in name]


@pytest.mark.parametrize("name", FILES)
def test_what_a_target_imports_counts_wherever_it_does(plugin, fresh, name):
    config = {"module": {"_target_": "ghostly.loss.loss", "weight": 0.5}}
    before = source_digest(config)
    with (plugin / name).open("a") as file:
        file.write("1 + 1\n")
    fresh()
    assert (source_digest(config) != before) == (name in COUNTS)
    assert "ghostly" not in sys.modules  # nothing is imported for it


@pytest.mark.parametrize(
    "content", ["def (", "\0", "x = " + "(" * 3000, "import nowhere.at.all\nfrom ..... import x\n"]
)
def test_source_that_cannot_be_parsed_counts_too(plugin, fresh, content):
    before = source_digest("ghostly.loss.loss")
    (plugin / "ghostly" / "loss.py").write_text(content)
    fresh()
    assert source_digest("ghostly.loss.loss") != before


def test_other_strings_and_other_peoples_packages_do_not_count(plugin):
    assert source_digest({"path": "x/y.py", "text": "no.such.module", "n": [1.5, None, True]}) == source_digest({})
    assert source_digest(["torch.nn.Linear", "os.path.join", "data.root"]) == source_digest({})


ABL, FIT = "backdoor.defenses.abl.GradientAscent", "backdoor.stages.Fit"
EDITS = {  # file -> whether ABL's stages, a victim's, and a job's result are made anew
    "defenses/abl/method.py": (True, False, True),
    "defenses/dbd/module.py": (False, False, False),
    "training/module.py": (True, True, True),
    "training/callbacks.py": (True, True, True),
    "data/augment.py": (True, True, True),
    "experiment/preparation.py": (True, True, True),
    "metrics/attack.py": (False, False, True),
    "figures/figures.py": (False, False, True),
    "report/page.py": (False, False, False),
    "cli/main.py": (False, False, False),
    "sweep/runner.py": (False, False, False),
}


def test_an_edit_of_our_own_counts_where_it_is_used(tmp_path, monkeypatch, fresh):
    copy = shutil.copytree(SRC / "backdoor", tmp_path / "backdoor", ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(source, "places", source.cache(lambda top: (copy,) if top == "backdoor" else ()))
    victim = {"_target_": FIT, "module": {"_target_": "backdoor.training.Classifier"}}
    job = OmegaConf.create({"victim": victim, "defense": {"_target_": ABL}})

    def keys() -> tuple[str, str, str]:
        fresh()
        return source_digest([{"_target_": FIT}, {"_target_": ABL}]), source_digest(victim), result_key(job)

    before, changed = keys(), {}
    for name in EDITS:
        text = (copy / name).read_text()
        (copy / name).write_text(text + "# A comment.\n")
        changed[name] = tuple(old != new for old, new in zip(before, keys(), strict=True))
        (copy / name).write_text(text)
    assert changed == EDITS


def test_a_stage_needs_no_source_of_the_command_line():
    stages = closure(frozenset({module_of(FIT), *source.ROOTS}), skip=source.REPORTING)
    assert {"backdoor.training.callbacks", "backdoor.data.loader", "backdoor.models.small_cnn"} <= stages
    assert not [
        name
        for name in stages
        if re.match(r"backdoor\.(cli|configs|sweep|report|experiment|figures|loggers|metrics|attacks|triggers)", name)
    ]


LOSS = """
from backdoor.training import Classifier


class Mine(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 1.0
"""


def test_an_edited_loss_is_trained_again_and_the_plan_knows(tmp_path, monkeypatch, fresh, command, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    words = (*QUICK, "victim.module._target_=mine.Mine", "defense=none", f"store.dir={tmp_path / 'store'}")

    def trained(text: str, name: str) -> tuple[bool, str]:
        """Whether the victim came from the store, and what the plan said before."""
        (tmp_path / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        fresh()
        assert plan(["-m", *words]) == 0
        said = capsys.readouterr().out
        status, _, error = command(*words, f"hydra.run.dir={tmp_path / name}")
        assert status == 0, error
        return read_json(tmp_path / name)["stages"][0]["stored"], said

    stored, said = trained(LOSS, "first")
    assert not stored
    assert "1 to train" in said
    stored, said = trained(LOSS, "again")
    assert stored
    assert "1 finished" in said
    assert "0 to train" in said
    stored, said = trained(LOSS.replace("1.0", "0.5"), "edited")
    assert not stored
    assert "0 finished" in said
    assert "1 to train" in said
    sys.modules.pop("mine", None)
