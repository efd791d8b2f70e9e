"""Words about Hydra itself (`hydra.*`, `hydra/*`) that its own code cannot take, and says so only with a traceback."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from backdoor.configs.command import Command
from backdoor.errors import UserError

# What Hydra and OmegaConf raise by the way; what they mean to say to a user has a class of theirs.
BY_THE_WAY = (AttributeError, AssertionError, TypeError, ValueError)


def check_plugin(name: str, node: Any) -> None:
    """Whether the config's `hydra.<name>`, a sweeper or a launcher, is one that Hydra would start.

    Raises:
        UserError: it is no config, or names a class outside of Hydra's plugins.
    """
    target = str(node.get("_target_")) if isinstance(node, DictConfig) else None
    if target is None or not Plugins.instance().is_in_toplevel_plugins_module(target):
        shown = f"hydra.{name}={node}" if target is None else f"hydra.{name}._target_={target}"
        raise UserError(f"{shown}: expected a plugin of Hydra's; choose one with hydra/{name}=NAME")


def refused_word(error: Exception, command: Command | None) -> str | None:
    """The line for a word at which Hydra itself failed; None if it was not Hydra that did, or no word is known."""
    if command is None or not raised_by_hydra(error):
        return None
    own = hydra_words(command)
    word = next((word for word in own if fails(command, word, type(error))), own[0] if len(own) == 1 else None)
    if word is None:
        return None
    said = (str(error) or type(error).__name__).splitlines()[0]
    return f"{word}: Hydra cannot take it ({said}); expected what `--cfg hydra` shows there, changed in its value alone"


def hydra_words(command: Command) -> list[str]:
    """The command's words about Hydra itself."""
    return [word for word in command.overrides if word.lstrip("+~").startswith("hydra")]


def fails(command: Command, word: str, kind: type[Exception]) -> bool:
    """Whether `word` alone cannot be composed, for that kind of reason."""
    try:
        command.compose((word,))
    except Exception as error:
        return type(error) is kind
    return False


def raised_by_hydra(error: BaseException) -> bool:
    """Whether Hydra itself, while it set up a run, made the call that failed."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.startswith(("hydra.", "backdoor.")):
            last = module
        trace = trace.tb_next
    return last.startswith("hydra.") and "instantiate" not in last
