"""The neurons of ANP: the channels of a network's normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor.errors import UserError

# What scales and shifts channels; the paper has BatchNorm, its authors' code InstanceNorm besides.
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


def find_norms(model: nn.Module) -> dict[str, nn.Module]:
    """name -> normalisation layer with a scale (C,), in the network's order.

    Raises:
        UserError: there is none.
    """
    found: dict[str, nn.Module] = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, NORMS) and part.weight is not None and part.weight.ndim == 1
    }
    if not found:
        raise UserError(
            f"model: {type(model).__name__} has no BatchNorm, LayerNorm or GroupNorm with weights, whose channels ANP "
            "masks; choose a model with them (of conf/model all but vgg19)"
        )
    return found


def split_by_norm(values: Tensor, norms: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """One value a neuron (n,) -> layer name -> (C,), copies."""
    sizes = [len(norm.get_parameter("weight")) for norm in norms.values()]
    return {name: part.clone() for name, part in zip(norms, values.split(sizes), strict=True)}


def neuron_count(norms: Mapping[str, nn.Module]) -> int:
    """How many channels the layers have together."""
    return sum(len(norm.get_parameter("weight")) for norm in norms.values())


@torch.no_grad()
def prune_neurons(model: nn.Module, pruned: Mapping[str, Tensor]) -> None:
    """Set the scale of the channels where `pruned` (layer name -> bool (C,)) is True to 0, in place.

    The shift stays: the paper's masks multiply a neuron's weights and not its bias, and the authors' code sets
    the scale alone to 0.
    """
    for name, mask in pruned.items():
        weight = model.get_submodule(name).get_parameter("weight")
        weight[mask.to(weight.device)] = 0.0
