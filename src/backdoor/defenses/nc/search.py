"""The search for triggers: all classes are one batched problem, a mask and a pattern each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.checking.ranges import AboveOne, Count, Momentum, Positive, SomeShare
from backdoor.data.loader import mix, to_float
from backdoor.defenses.nc.method import Costs, adjust, stamp
from backdoor.errors import UserError, check_whole

Forward = Callable[[Tensor], Tensor]

# Sets the first masks and patterns apart from the order of the batches.
FIRST, ORDER = 0x9C, 0x9D


@dataclass(frozen=True, kw_only=True)
class Search:
    """How triggers are searched for; the numbers are BackdoorBench's unless said otherwise.

    Attributes:
        epochs: passes over the images, at most.
        batch_size: clean images a step; each is stamped once for every class.
        at_once: stamped images a forward pass, at most (never less than one class's); None: 512 on a CPU, else 4096.
        lr, betas: Adam's.
        cost, multiplier, patience: first weight of the mask's norm, and its schedule (see `method.adjust`).
        from_zero: the cost starts at 0 and becomes `cost` after the first good epochs, as in the authors' code.
        success: share of images that a trigger must send to its class for its mask to count.
        stop_patience, improvement: a class ends after so many epochs in which its smallest norm did not fall below
            `improvement` times the one before.

    Raises:
        UserError: a setting out of range.
    """

    epochs: Count = 80
    batch_size: Count = 256
    at_once: Count | None = None
    lr: Positive = 0.1
    betas: Sequence[Momentum] = (0.5, 0.9)
    cost: Positive = 1e-3
    multiplier: AboveOne = 2.0
    patience: Count = 5
    from_zero: bool = False
    success: SomeShare = 0.98
    stop_patience: Count = 25
    improvement: SomeShare = 0.99

    def __post_init__(self) -> None:
        whole = {"epochs": self.epochs, "batch_size": self.batch_size, "patience": self.patience}
        check_whole({**whole, "stop_patience": self.stop_patience})
        if self.at_once is not None:
            check_whole({"at_once": self.at_once})
        for name, value, above, top in (
            ("lr", self.lr, 0.0, math.inf),
            ("cost", self.cost, 0.0, math.inf),
            ("multiplier", self.multiplier, 1.0, math.inf),
            ("success", self.success, 0.0, 1.0),
            ("improvement", self.improvement, 0.0, 1.0),
        ):
            if not isinstance(value, int | float) or not above < value <= top or value == math.inf:
                limit = f" and up to {top:g}" if top < math.inf else ""
                raise UserError(f"{name}={value}: expected a number above {above:g}{limit}")
        if len(self.betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas={list(self.betas)}: expected two numbers in [0, 1), for instance [0.5, 0.9]")

    def classes_at_once(self, images: int, device: torch.device) -> int:
        """Classes a forward pass, for so many images each."""
        limit = self.at_once or (512 if device.type == "cpu" else 4096)
        return max(1, limit // images)


class Reversed(NamedTuple):
    """What the search found for K classes; on its device.

    Attributes:
        masks: float32 [0, 1] (K, 1, H, W), the smallest that worked; the last one where none did.
        patterns: float32 [0, 1] (K, C, H, W).
        norms: float32 (K,), sums of the masks in pixels; H * W, a mask's largest, where none worked.
        success: float32 (K,), share of the images that these triggers send to their class.
        epochs: int64 (K,), passes that each class took.
        shrinking: bool (K,), whether the norm still fell in the last pass: it would be smaller after more of them.
    """

    masks: Tensor
    patterns: Tensor
    norms: Tensor
    success: Tensor
    epochs: Tensor
    shrinking: Tensor


def reverse_triggers(
    forward: Forward, images: Tensor, targets: Tensor, search: Search, *, seed: int, batches: int | None = None
) -> Reversed:
    """Reverse-engineer the smallest trigger towards each of `targets` (Wang et al. 2019, section IV).

    Each class minimises its own cross-entropy + cost * |mask|_1, mask and pattern being tanh(w) / 2 + 1/2. The classes
    share nothing but the clean batches and the first mask and pattern, so a class comes out as if it were alone (up to
    rounding). After each epoch every mask is tried on all images; the smallest that works is kept.

    Args:
        forward: float [0, 1] (B, C, H, W) -> float32 logits; differentiable by its images.
        images: uint8 (N, C, H, W), trusted; their device is where the search runs.
        targets: int64 (K,), classes.
        batches: a pass has at most so many.

    Raises:
        FloatingPointError: the loss is no number.
    """
    batch = min(search.batch_size, len(images))
    problem = Problem(forward, targets.to(images.device), tuple(images.shape[1:]), search, seed)
    width = search.classes_at_once(batch, images.device)
    for epoch in range(search.epochs):
        active = problem.active()
        if len(active) == 0:
            break
        for clean in islice(shuffled(images, batch, seed, epoch), batches):
            problem.step(clean, active.split(width))
        problem.close_epoch(active, images, batch, width, batches)
    return problem.result()


def shuffled(images: Tensor, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """float [0, 1] batches of one pass, in an order given by (seed, epoch) alone."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mix(seed, ORDER, epoch)))
    for rows in order.split(batch):
        yield to_float(images[rows.to(images.device)])


class Problem:
    """Masks and patterns of K classes while they are optimised; see `reverse_triggers`."""

    def __init__(self, forward: Forward, targets: Tensor, shape: tuple[int, ...], search: Search, seed: int) -> None:
        device, count = targets.device, len(targets)
        self.forward, self.targets, self.search = forward, targets, search
        drawn = torch.rand(1, 1 + shape[0], *shape[1:], generator=torch.Generator().manual_seed(mix(seed, FIRST)))
        first = torch.atanh((drawn - 0.5) * (2 - 1e-6)).to(device).repeat(count, 1, 1, 1)
        self.raw = first.requires_grad_()  # (K, 1 + C, H, W): the mask before the pattern
        self.adam = torch.optim.Adam([self.raw], lr=search.lr, betas=(search.betas[0], search.betas[1]))
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        weight = torch.full((count,), 0.0 if search.from_zero else search.cost, device=device)
        self.costs = Costs(weight, zeros, zeros)
        self.best, self.norms = unit(self.raw.detach()), torch.full((count,), float("inf"), device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)
        self.success, self.stale, self.epochs = torch.zeros(count, device=device), zeros, zeros.clone()

    def active(self) -> Tensor:
        """int64: positions of the classes that still go on."""
        return (self.stale < self.search.stop_patience).nonzero().flatten()

    def logits(self, triggers: Tensor, clean: Tensor) -> Tensor:
        """(k, b, classes) of the clean images (b, C, H, W) under triggers (k, 1 + C, H, W)."""
        triggers = triggers[:, None]
        stamped = stamp(clean[None], triggers[:, :, :1], triggers[:, :, 1:])
        return self.forward(stamped.flatten(0, 1)).unflatten(0, stamped.shape[:2])

    def step(self, clean: Tensor, parts: Sequence[Tensor]) -> None:
        """One step of Adam for the classes in `parts`, one forward pass a part."""
        self.raw.grad = torch.zeros_like(self.raw)
        for part in parts:
            raw = self.raw.detach()[part].requires_grad_()
            with torch.enable_grad():
                triggers = unit(raw)
                logits = self.logits(triggers, clean)
                labels = self.targets[part][:, None].expand(logits.shape[:2])
                losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
                fooled = losses.unflatten(0, logits.shape[:2]).mean(1)
                loss = (fooled + self.costs.weight[part] * mask_norms(triggers)).sum()
                self.broken |= ~loss.detach().isfinite()
                (self.raw.grad[part],) = torch.autograd.grad(loss, raw)
        self.adam.step()

    @torch.no_grad()
    def close_epoch(self, active: Tensor, images: Tensor, batch: int, width: int, batches: int | None) -> None:
        """Try the masks, keep the smallest that work, adjust the costs, count epochs without progress."""
        triggers = unit(self.raw.detach())
        if self.broken:  # asked once an epoch: it waits for the device
            raise FloatingPointError("the loss became nan")
        hits = torch.zeros(len(self.targets), device=images.device)
        seen = islice(images.split(batch), batches)
        count = 0
        for rows in seen:
            clean, count = to_float(rows), count + len(rows)
            for part in active.split(width):
                hits[part] += (self.logits(triggers[part], clean).argmax(2) == self.targets[part][:, None]).sum(1)
        rate, norms = hits / count, mask_norms(triggers)
        going = torch.zeros_like(hits, dtype=torch.bool)
        going[active] = True
        works = rate >= self.search.success
        better = going & works & (norms < self.norms)
        # Where nothing has worked yet, the last trigger is shown, and counts for nothing.
        shown = better | (going & self.norms.isinf())
        progress = going & works & (norms < self.search.improvement * self.norms)
        waited = torch.where(self.norms.isinf(), 0, self.stale + 1)
        self.stale = torch.where(going, torch.where(progress, 0, waited), self.stale)
        self.best[shown], self.success[shown] = triggers[shown], rate[shown]
        self.norms = torch.where(better, norms, self.norms)
        self.epochs += going
        settings = self.search
        self.costs = adjust(
            self.costs, works, first=settings.cost, patience=settings.patience, multiplier=settings.multiplier
        )

    def result(self) -> Reversed:
        """What was kept."""
        whole = float(self.best.shape[-1] * self.best.shape[-2])
        norms = torch.where(self.norms.isinf(), whole, self.norms)
        shrinking = self.norms.isfinite() & (self.stale == 0)
        return Reversed(self.best[:, :1], self.best[:, 1:], norms, self.success, self.epochs, shrinking)


def unit(raw: Tensor) -> Tensor:
    """Any number -> [0, 1]."""
    return torch.tanh(raw) / 2 + 0.5


def mask_norms(triggers: Tensor) -> Tensor:
    """(K,): the L1 norm in pixels of the masks of (K, 1 + C, H, W)."""
    return triggers[:, 0].sum((1, 2))
