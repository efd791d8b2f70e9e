"""What the tests of the command line share: a small conf/ and real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"

CONF = {
    "config.yaml": """# primary
defaults: [{data: digits}, {attack: badnets}, {defense: abl}, _self_]
seed: 0
copy: ${attack.ratio}
""",
    "attack/badnets.yaml": "# Patch.\nratio: 0.1\ntarget: 0\n",
    "attack/sig.yaml": "# Sinusoid.\ndefaults: [{/trigger: patch}]\nratio: 0.1\ndelta: 20\n",
    "attack/broken.yaml": "# Not YAML.\nratio: [0.1\n",
    "attack/_part.yaml": "# Not a choice.\nratio: 0.1\n",
    "attack/parts/deep.yaml": "# Not a choice either.\nratio: 0.1\n",
    "trigger/patch.yaml": "# @package _here_\n# A square.\nsize: 3\n",
    "defense/abl.yaml": "# ABL.\nstages: {isolate: {epochs: 20}, unlearn: {epochs: 5, lr: 0.1}}\n",
    "data/digits.yaml": "# Digits.\nsize: 32\n",
    "data/folder.yaml": "# Your own.\nroot: ???\nsize: 32\n",
}

# The experiment's place is taken by a few lines, so that only the command line is under test.
PROGRAM = """
import sys, types
experiment = types.ModuleType("backdoor.experiment.run")
def run(cfg, place):
{body}
experiment.run = run
experiment.check = lambda cfg, here: None
sys.modules["backdoor.experiment.run"] = experiment
from backdoor.cli.main import main
main()
"""


def python(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "PYTHONPATH": str(SRC), **env}
    if "HYDRA_FULL_ERROR" not in env:
        full.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=full, cwd=cwd, timeout=60)


def program(conf: Path, body: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
    return python("-c", code, "--config-path", str(conf), *words, cwd=conf.parent, **env)
