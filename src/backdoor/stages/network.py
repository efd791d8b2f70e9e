"""What a stage may hand on as a model: the run's own network, with a module before it that its stage can make again."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor.errors import UserError
from backdoor.models.base import ImageClassifier
from backdoor.stages.base import Stage
from backdoor.state import State
from backdoor.store.weights import has_preprocess
from backdoor.training.context import RunContext

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def network(stage: Stage, state: State, context: RunContext, *, preprocess: bool) -> nn.Module:
    """The run's network, untrained; with `preprocess`, that of the stage or else of the model that it began with."""
    model = context.make_model()
    if not preprocess or not isinstance(model, ImageClassifier):
        return model
    cleans = stage.preprocess(state)
    if cleans is not None:
        model.preprocess = cleans
    elif isinstance(state.model, ImageClassifier):
        model.preprocess = copy.deepcopy(state.model.preprocess)
    return context.place(model)


def network_for(stage: Stage, state: State, context: RunContext, weights: Path) -> nn.Module:
    """The network that a file of weights which this stage left belongs to."""
    return network(stage, state, context, preprocess=has_preprocess(weights, setting="store.dir"))


def check_kept(model: nn.Module, stage: Stage, state: State, context: RunContext, *, name: str) -> None:
    """Refuse a model whose logits its weights alone do not tell: they would be measured without what is around it.

    Raises:
        UserError: another class or other layers than the run's network has, hooks, or a `preprocess` that cannot be
            made again or holds no tensor.
    """
    cleans = getattr(model, "preprocess", None)
    problem = difference(model, network(stage, state, context, preprocess=cleans is not None))
    if problem is None and isinstance(cleans, nn.Module) and not cleans.state_dict():
        problem = "has a preprocess without any tensor, so a file could not tell that it is there (register a buffer)"
    if problem is not None:
        raise UserError(
            f"stage {name}: its model {problem}; what is saved are the weights of the run's model, so a change of the "
            "input goes into ImageClassifier.preprocess, made by the stage's method `preprocess(state)`, and any "
            "other into the weights"
        )


def difference(model: nn.Module, own: nn.Module) -> str | None:
    """What sets a model apart from the run's `own`, besides the values of its tensors, in a few words."""
    if type(model) is not type(own):
        return f"is a {type(model).__name__} and not the run's {type(own).__name__}"
    found, expected = dict(model.named_modules()), dict(own.named_modules())
    for part in [*expected, *(part for part in found if part not in expected)]:
        has, wanted = (kind_of(parts.get(part)) for parts in (found, expected))
        if has != wanted:
            return f"has {has} as {part}, where expected is {wanted}"
        if any(getattr(found[part], hooks) for hooks in HOOKS) or "forward" in vars(found[part]):
            return f"has a hook on its {part or 'outside'}"
    shapes, wanted_shapes = ({key: value.shape for key, value in one.state_dict().items()} for one in (model, own))
    for key in {**wanted_shapes, **shapes}:
        if shapes.get(key) != wanted_shapes.get(key):
            return f"has {key} of shape {shapes.get(key)}, where expected is {wanted_shapes.get(key)}"
    return None


def kind_of(part: nn.Module | None) -> str:
    """The class of a module by its name; `nothing` for none."""
    if part is None:
        return "nothing"
    kind = type(part)
    # Lightning swaps BatchNorm for its synchronised form, and back for a more general one.
    usual = kind.__module__.partition(".")[0] in ("torch", "pytorch_lightning")
    return "BatchNorm" if usual and isinstance(part, _BatchNorm) else f"{kind.__module__}.{kind.__qualname__}"
