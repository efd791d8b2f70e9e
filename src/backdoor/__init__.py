"""Backdoor attacks on image classifiers and defenses against them.

    import backdoor as bd

    run = bd.run("attack=badnets", "defense=abl", seed=1)       # the shell's words, one job
    old = bd.load("outputs/digits/badnets-abl/...")             # a finished run, opened
    poisoned = bd.poison(my_dataset, "attack=blended", seed=0)  # a data set of your own, poisoned
    report = bd.evaluate(my_model, poisoned)                    # C-Acc, ASR, R-Acc of a model of your own

Importing this module loads no torch and changes nothing; each name is loaded when it is first used. What each of them
is, the type checker reads in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Name -> (room, module) that it comes from; no dotted names, which would count as imports of every stage.
_PLACES = {
    "run": ("api", "jobs"),
    "load": ("api", "jobs"),
    "poison": ("api", "poisoning"),
    "evaluate": ("api", "evaluating"),
    "Run": ("experiment", "reopen"),
    "PoisonedData": ("experiment", "datasets"),
    "ImageData": ("experiment", "datasets"),
    "UserError": ("errors",),
    "models": ("models",),
    "triggers": ("triggers",),
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """Load what `name` stands for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(".".join([__name__, *_PLACES[name]]))
    return module if _PLACES[name] == (name,) else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
