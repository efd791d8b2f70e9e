"""`bd.run` and `bd.load`: the shell's words in Python, and a finished run opened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread

import hydra
import numpy as np
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import getbase

import backdoor as bd
from backdoor.configs.in_process import compose_job, value_of
from backdoor.training.inference import predict
from helpers.api import settings
from helpers.command import QUICK, numbers
from helpers.run import in_process

JOB = ("attack=badnets", "defense=abl", *QUICK, "attack.target=4", "reserved=0.1", "victim.epochs=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> bd.Run:
    return bd.run(*JOB, seed=3, **settings(tmp_path_factory.mktemp("run")))


def line(*words: str, **more: object) -> str:
    with pytest.raises(bd.UserError) as caught:
        bd.run(*words, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_importing_loads_nothing_and_takes_no_time():
    code = (
        "import time, sys; start = time.perf_counter(); import backdoor as bd; spent = time.perf_counter() - start; "
        "assert not {'torch', 'hydra', 'numpy', 'omegaconf'} & set(sys.modules); "
        "assert {'run', 'poison'} <= set(dir(bd)); print(spent)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1


def test_type_checkers_know_every_name():
    stub = Path(bd.__file__).with_suffix(".pyi").read_text()
    assert set(re.findall(r" as (\w+)$", stub, re.MULTILINE)) | {"__version__"} == set(bd.__all__)
    for name in bd.__all__:
        assert getattr(bd, name) is not None
    with pytest.raises(AttributeError, match="runn"):
        bd.runn  # noqa: B018


def test_a_run_has_the_numbers_of_the_command_line(run, tmp_path):
    status, said = in_process(tmp_path / "cache", *JOB, "seed=3", f"hydra.run.dir={tmp_path / 'shell'}")
    assert status == 0, said
    assert numbers(run.folder) == numbers(tmp_path / "shell")
    assert run.stage("unlearn")["asr"] == run.final["asr"]


def test_the_process_is_as_it_was(tmp_path):
    """Inside a user's own Hydra application, too."""
    before = getbase()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2", job_name="theirs"):
        mine, base = GlobalHydra.instance().hydra, getbase()
        bd.run("attack=badnets", "defense=none", *QUICK, **settings(tmp_path))
        assert GlobalHydra.instance().hydra is mine
        assert getbase() == base != before
    assert HydraConfig.instance().cfg is None


def test_threads_compose_side_by_side():
    found: list[int] = []
    workers = [
        Thread(target=lambda seed=seed: found.append(compose_job(["defense=none"], {"seed": seed}).cfg.seed))
        for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(found) == [0, 1, 2, 3]


def test_values_of_every_kind_reach_the_config():
    given = {
        "attack.ratio": 0.05,
        "progress": False,
        "threads": None,
        "objective": ["c_acc", "asr"],
        "attack": "blended",
    }
    cfg = compose_job(["defense=none"], {**given, "store.dir": "a b/it's"}).cfg
    assert (cfg.attack.ratio, cfg.progress, cfg.threads, cfg.objective) == (0.05, False, None, ["c_acc", "asr"])
    assert cfg.attack.name == "blended"
    assert cfg.store.dir == "a b/it's"
    assert value_of({"a": [1, None]}) == "{a:[1,null]}"


def test_a_folder_that_nobody_chose_is_never_taken_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = compose_job(["defense=none"]).folder
    first.mkdir(parents=True)
    again = compose_job(["defense=none", f"hydra.run.dir={first}"])
    assert again.folder == first
    for word in (str(first), f"{first}-2"):
        Path(word).mkdir(exist_ok=True, parents=True)
    assert not compose_job(["defense=none"]).folder.exists()


def test_mistakes_are_one_line(tmp_path):
    assert "did you mean 'badnets'" in line("attack=badnet")
    assert "atack: no such option; did you mean 'attack'" in line("atack=badnets")
    assert "call it once for each" in line("seed=0,1")
    assert line("-m", "seed=0,1").startswith("-m: one job")
    assert "no such flag" in line("--attack=badnets")
    assert "attack.ratio=2" in line("attack=badnets", **{"attack.ratio": 2})
    assert "expected a number, a text" in line(seed=object())
    absent = line("data=folder", "defense=none", **{"data.root": tmp_path / "absent", **settings(tmp_path)})
    assert "absent" in absent


def test_a_reopened_run_has_what_was_trained(run):
    old = bd.load(run.folder)
    assert old.final == run.final
    assert [stage.name for stage in old.stages] == ["victim", "isolate", "finetune", "control", "unlearn"]
    test = old.data.test.split
    for name in ("victim", "unlearn"):
        accuracy = predict(old.model(name), test).eq(test.labels).double().mean()
        assert float(accuracy) == pytest.approx(old.stage(name)["c_acc"], abs=1e-12)
    assert not old.model().training
    assert all(
        torch.equal(a, b) for a, b in zip(old.model().parameters(), old.model("unlearn").parameters(), strict=True)
    )


def test_a_reopened_run_has_the_poison_of_then(run):
    old = bd.load(run.folder)
    poisoned, clean = old.poisoned, old.data
    assert torch.equal(poisoned.rows, old.plan.rows)
    assert poisoned.train.labels[poisoned.rows].eq(4).all()
    with np.load(run.folder / "isolate.npz") as isolated:
        where = torch.searchsorted(poisoned.train.split.index, torch.from_numpy(isolated["index"]))
        assert np.array_equal(poisoned.train.split.take(where).images.numpy(), isolated["images"])
    changed = (poisoned.train.split.images != clean.train.split.images).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == poisoned.rows.tolist()
    assert len(clean.reserved) == 144
    image, label = poisoned.test_attack[0]
    assert (image.shape, label) == ((3, 32, 32), 4)
    stamped = poisoned.trigger(poisoned.test.split.take(torch.arange(1)).images)
    assert (stamped != poisoned.test.split.take(torch.arange(1)).images).any()
    assert [path.name for path in old.figures][:2] == ["epochs.png", "isolate_loss_gap.png"]


def test_a_run_on_a_run_has_that_ones_poison(run, tmp_path):
    words = ("attack=external", f"attack.run={run.folder}", "defense=ft", *QUICK, "reserved=0.1", "seed=3")
    later = bd.run(*words, **settings(tmp_path))
    assert torch.equal(later.poisoned.train.labels, run.poisoned.train.labels)
    assert torch.equal(later.poisoned.rows, run.poisoned.rows)


def test_a_run_on_files_of_ones_own_has_them(tmp_path):
    images = np.zeros((20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(20) % 10)
    words = ("attack=external", f"attack.train={tmp_path / 'train.npz'}", "defense=none", *QUICK)
    made = bd.run(*words, **settings(tmp_path))
    assert made.plan is None
    assert made.poisoned.train.labels.tolist() == [*range(10), *range(10)]
    assert len(made.poisoned.rows) == 0
    assert made.poisoned.test_attack is None


def copied(run: bd.Run, folder: Path) -> Path:
    shutil.copytree(run.folder, folder)
    return folder


def look_at(folder: Path, part: str) -> object:
    old = bd.load(folder)
    return old.model() if part == "model" else getattr(old, part)


def refusal(folder: Path, part: str = "result") -> str:
    with pytest.raises(bd.UserError) as caught:
        look_at(folder, part)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    assert "no such folder" in refusal(tmp_path / "absent")
    assert "holds no status.json" in refusal(tmp_path)
    folder = copied(run, tmp_path / "damaged")
    (folder / "result.json").write_text("{")
    assert "damaged or half written" in refusal(folder)
    (folder / "status.json").write_text(json.dumps({"state": "running"}))
    assert "not finished (state: running)" in refusal(folder)
    with pytest.raises(bd.UserError, match="has no stage unlern; did you mean 'unlearn'"):
        run.stage("unlern")
    with pytest.raises(bd.UserError, match="holds no weights of a stage isolat"):
        run.model("isolat")


def test_a_strangers_classes_are_not_made(run, tmp_path):
    folder = copied(run, tmp_path / "stranger")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for part in ("model", "poisoned"):
        assert "names model._target_=os.system" in refusal(folder, part)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_of_this_network_are_refused(run, tmp_path):
    folder = copied(run, tmp_path / "other")
    result = json.loads((folder / "result.json").read_text())
    result["images"]["network"]["num_classes"] = 7
    (folder / "result.json").write_text(json.dumps(result))
    assert "10 classes" in refusal(folder, "model")
    del result["images"]  # of a run that kept none: the images tell
    (folder / "result.json").write_text(json.dumps(result))
    assert bd.load(folder).model().head.out_features == 10
