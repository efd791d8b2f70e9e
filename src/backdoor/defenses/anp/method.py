"""ANP's min-max (Wu and Wang, Algorithm 1): masks that keep clean loss low however the neurons are disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# (factor of every neuron's scale (n,), factor of its shift (n,)) -> a scalar loss.
NeuronLoss = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def scaled(norms: Mapping[str, nn.Module], weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The layers' parameters with every neuron's scale times `weight` (n,) and its shift times `bias` (n,).

    Returns:
        Parameter name -> (C,), as `torch.func.functional_call` takes them; the layers are not changed.
    """
    sizes = [len(norm.get_parameter("weight")) for norm in norms.values()]
    result = {}
    for (name, norm), by, shift in zip(norms.items(), weight.split(sizes), bias.split(sizes), strict=True):
        factors = {"weight": by, "bias": shift}
        for kind, parameter in norm.named_parameters(recurse=False):
            result[f"{name}.{kind}"] = parameter * factors[kind]
    return result


def worst_case(
    loss: NeuronLoss, masks: Tensor, *, eps: float, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The disturbances (delta, xi), each (n,) in [-eps, eps], that raise the loss most: the inner maximisation.

    They start uniform in [-eps, eps] and take `steps` steps of eps / steps along the gradient's sign, clipped to
    the range, which the authors' code leaves out; loss(masks + delta, 1 + xi) is what is raised.

    Args:
        masks: float (n,), held fixed.
        generator: on the CPU.
    """
    draws = torch.empty(2, len(masks)).uniform_(-eps, eps, generator=generator)
    both, masks = draws.to(masks.device), masks.detach()
    for _ in range(steps):
        both.requires_grad_()
        (slope,) = torch.autograd.grad(loss(masks + both[0], 1 + both[1]), both)
        both = (both.detach() + (eps / steps) * slope.sign()).clamp_(-eps, eps)
    return both[0], both[1]


def learn_masks(
    forward: Forward,
    batches: Iterable[tuple[Tensor, Tensor]],
    masks: Tensor,
    *,
    lr: float = 0.2,
    momentum: float = 0.9,
    eps: float = 0.4,
    alpha: float = 0.2,
    ascent_steps: int = 1,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Optimise `masks` in place, one SGD step a batch, clipped to [0, 1] (Algorithm 1).

    The loss is alpha * CE(masks alone) + (1 - alpha) * CE(masks, disturbed in the worst case).

    Args:
        forward: (images, scale factors (n,), shift factors (n,)) -> logits (B, K).
        batches: (images, labels int64 (B,)) pairs.
        masks: float (n,), the start: 1 in the paper.
        eps, alpha, ascent_steps, lr: 0.4, 0.2, 1 and 0.2 in the paper.

    Yields:
        The loss of each step, a scalar on the masks' device.
    """
    masks.requires_grad_()
    optimizer = torch.optim.SGD([masks], lr=lr, momentum=momentum)
    still = torch.ones_like(masks)
    for images, labels in batches:

        def loss(weight: Tensor, bias: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            return F.cross_entropy(forward(images, weight, bias), labels)

        delta, xi = worst_case(loss, masks, eps=eps, steps=ascent_steps, generator=generator)
        value = alpha * loss(masks, still) + (1 - alpha) * loss(masks + delta, 1 + xi)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            masks.clamp_(0, 1)
        yield value.detach()
    masks.requires_grad_(False)
