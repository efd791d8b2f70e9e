"""The borders of the rooms: which may import which is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import grimp
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]


def test_each_room_imports_those_below_it_alone(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out


def test_no_two_modules_import_each_other():
    graph = grimp.build_graph("backdoor", cache_dir=None)
    circles = [
        (one, other)
        for one in graph.modules
        for other in graph.find_modules_directly_imported_by(one)
        if graph.chain_exists(importer=other, imported=one)
    ]
    assert not circles
