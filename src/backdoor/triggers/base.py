"""The trigger protocol: subclasses paint in floating point, the base rounds once at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from backdoor.errors import UserError
from backdoor.triggers.chunks import one_thread, rows_at_once
from backdoor.triggers.settings import one_of
from backdoor.triggers.transform import batched

Shape = tuple[int, int, int]
T = TypeVar("T")


class Trigger(nn.Module):
    """A deterministic change of a batch of images, out of place.

    Subclasses write `paint`, on float32 levels from 0 to 255, without clamping or rounding: composed
    triggers are then clamped and rounded once, like a real file that was written once.

    Args:
        rounding: ``round`` is floor(v + 0.5); ``trunc`` drops the fraction, as the reference codes
            of ABL and D-BR do by casting to uint8.
        overflow: ``clip`` saturates at 0 and 255; ``wrap`` counts modulo 256, which is what the
            reference Trojan trigger does on x86 when it casts.
        quantize: whether float images, too, end on the 256 levels of a file.

    Attributes:
        needs: names of the findings of the attack's stages without which it cannot paint.
        network: it runs a network, on that network's device and on all threads, not arithmetic on pixels.
        clean_label: it is of use on images that keep their true label alone.
    """

    needs: tuple[str, ...] = ()
    network: bool = False
    clean_label: bool = False

    def __init__(self, *, rounding: str = "round", overflow: str = "clip", quantize: bool = False) -> None:
        super().__init__()
        self.rounding = one_of("rounding", rounding, ("round", "trunc"))
        self.overflow = one_of("overflow", overflow, ("clip", "wrap"))
        self.quantize = bool(quantize)
        self._cache: dict[tuple[tuple[int, ...], torch.device], Any] = {}

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        """The triggered levels: float32 (B, C, H, W), 0..255 in, any range out; `x` is a copy to overwrite."""
        raise NotImplementedError

    def equip(self, findings: Mapping[str, Any]) -> Trigger:
        """The trigger with what the attack's stages found; this one if it needs nothing.

        Raises:
            UserError: a finding that is not there.
        """
        missing = [name for name in self.needs if name not in findings]
        if missing:
            raise UserError(
                f"attack.trigger: {type(self).__name__} needs {', '.join(missing)}, which no stage of the attack "
                "provides; add the stage to attack.stages"
            )
        return self.equipped(findings) if self.needs else self

    def equipped(self, findings: Mapping[str, Any]) -> Trigger:
        """A copy that can paint; `findings` has all that it `needs`. The copy needs nothing any more."""
        raise NotImplementedError

    def findings_in(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What `equip` was given, out of the state_dict of the trigger that it returned.

        A finding is the tensor of its name, or a mapping of the tensors whose names begin with it and a dot.

        Raises:
            KeyError: the tensors lack one.
        """
        return {name: below(tensors, name) or tensors[name] for name in self.needs}

    def ready_on(self, device: torch.device | None) -> Trigger:
        """Where it will run: networks on `device`, arithmetic where the images are."""
        return self.to(device) if self.network and device is not None else self

    def at_test(self) -> Trigger:
        """The trigger the attacker uses at test time: this one, unless a setting `test_*` differs."""
        return self

    def __call__(self, images: T, index: Tensor | None = None) -> T:
        """`forward`."""
        return super().__call__(images, index)

    def forward(self, images: Any, index: Tensor | None = None) -> Any:
        """Stamp a batch, or one image, as torchvision's v2 transforms do.

        Args:
            images: (B, C, H, W), uint8 or floating point in [0, 1]; B may be 0. Or one image: (C, H, W), (H, W), a PIL
                image or a `tv_tensors.Image`.
            index: int64 (B,), rows in the original set, for triggers that differ between images.

        Returns:
            Triggered images of the same type, shape, dtype and device. Pixels which the trigger leaves
            alone are bit-identical (float images with `quantize` excepted).

        Raises:
            ValueError: for another shape or dtype.
            UserError: if the trigger does not fit the images.
        """
        batch, back = batched(images)
        if not (batch.dtype == torch.uint8 or batch.is_floating_point()):
            raise ValueError(f"images: expected uint8 or float (B, C, H, W), got {batch.dtype} {tuple(batch.shape)}")
        if index is not None and (not isinstance(index, Tensor) or index.shape != batch.shape[:1]):
            got = tuple(index.shape) if isinstance(index, Tensor) else repr(index)
            raise ValueError(f"index: expected ({len(batch)},), got {got}; a transform is called with the image only")
        return back(self.stamp(batch, index))

    def check(self, shape: Shape) -> None:
        """Try the trigger on one black image.

        Args:
            shape: (C, H, W) of the images it is meant for.

        Raises:
            UserError: if it does not fit, for instance because it is larger than the image.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise UserError(f"attack.trigger: expected images (C, H, W) of at least 1 pixel, got {shape}")
        if self.needs:  # cannot paint yet: `check_shape` alone
            self.check_shape(shape)
            return
        self(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))

    def check_shape(self, shape: Shape) -> None:
        """What a trigger that cannot paint yet can say of images (C, H, W); raises UserError if it will not fit."""

    def stamp(self, images: Tensor, index: Tensor | None) -> Tensor:
        """`forward` after its checks; uint8 images go through `paint` in cache-sized chunks."""
        if images.dtype != torch.uint8:
            levels = to_levels(images)
            return self.finish(self.paint(levels.clone(), index), levels, images)
        step, out = rows_at_once(images), torch.empty_like(images)
        for start in range(0, max(1, len(images)), step):  # an empty batch, too, is painted and refused like others
            rows = slice(start, start + step)
            out[rows] = self.stamp_some(images[rows], None if index is None else index[rows])
        return out

    def stamp_some(self, images: Tensor, index: Tensor | None) -> Tensor:
        """uint8 images, a cache-sized chunk of them -> levels in 0..255, of any dtype that a cast makes uint8."""
        return self._pixels(self.paint(to_levels(images), index))

    def write(self, images: Tensor, rows: Tensor, index: Tensor) -> None:
        """Stamp some rows in place, a cache-sized chunk at a time; other pages of a memory map stay untouched.

        Arithmetic runs on one thread: memory is the limit, and on a busy machine torch's threads wait for each other
        at the end of every operation, which made 50,000 blends 100 times slower.

        Args:
            images: uint8 (N, C, H, W) on the CPU.
            rows: int64 (n,), positions, none twice.
            index: int64 (n,), rows in the original set.
        """
        pixels = images.numpy()  # copies whole rows at once; torch's indexed writes go element by element
        step = rows_at_once(images)
        device = next((value.device for value in self.state_dict().values()), images.device)
        with nullcontext() if self.network else one_thread():
            for some, numbers in zip(rows.split(step), index.split(step), strict=True):
                where = some.numpy()
                batch = torch.from_numpy(pixels[where])
                if self.network:
                    batch, numbers = batch.to(device), numbers.to(device)
                pixels[where] = self(batch, numbers).cpu().numpy()

    def finish(self, painted: Tensor, levels: Tensor, images: Tensor) -> Tensor:
        """Clamp (or wrap) and round painted levels, back to the dtype and scale of `images`.

        `levels` are the unpainted ones: where nothing changed, float pixels are handed on bit by bit
        instead of going through * 255 / 255.
        """
        if images.dtype == torch.uint8:
            return self._pixels(painted).to(torch.uint8)
        if self.quantize:
            return (self._round(painted).floor() / 255).to(images.dtype)
        inside = painted.remainder(256) if self.overflow == "wrap" else painted
        scaled = (inside.clamp(0, 255) / 255).to(images.dtype)
        return torch.where(painted == levels, images, scaled)

    def _pixels(self, painted: Tensor) -> Tensor:
        """int16 levels in 0..255, to be cast to uint8.

        torch casts float to int16 and that to uint8 with vector instructions: four times as fast on a CPU as at once.
        """
        return self._round(painted).to(torch.int16)

    def _round(self, painted: Tensor) -> Tensor:
        """Levels in [0, 256) whose whole part is the result: the cast to uint8 drops the rest. Overwrites."""
        half = 0.5 if self.rounding == "round" else 0.0
        if self.overflow == "wrap":
            return (painted + half).floor().remainder(256) if half else painted.trunc().remainder(256)
        return painted.clamp_(0, 255).add_(half)

    def _cached(self, images: Tensor, make: Callable[[], T]) -> T:
        """What `make` returns, made once for each shape (C, H, W) and device of `images`."""
        key = (tuple(images.shape[1:]), images.device)
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _changed(self, **settings: Any) -> Self:
        """A copy with other attribute values and nothing cached."""
        other = deepcopy(self)
        other._cache.clear()
        for name, value in settings.items():
            setattr(other, name, value)
        return other


def below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The part of a state_dict that belongs to the member `name`."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def to_levels(images: Tensor) -> Tensor:
    """uint8 or [0, 1] images as float32 levels 0..255, always a new tensor."""
    return images.float() if images.dtype == torch.uint8 else images.float() * 255


def shape_of(images: Tensor) -> Shape:
    """(C, H, W) of a batch (B, C, H, W)."""
    _, channels, height, width = images.shape
    return channels, height, width


def fit_channels(pattern: Tensor, channels: int) -> Tensor:
    """A (1|3, h, w) pattern for images of `channels`; RGB becomes its grey mean on 1-channel images.

    Raises:
        UserError: if an RGB pattern meets images of neither 1 nor 3 channels.
    """
    if len(pattern) in (1, channels):
        return pattern
    if channels == 1:
        return pattern.mean(0, keepdim=True)
    raise UserError(
        f"attack.trigger: expected images of 1 or {len(pattern)} channels for a pattern of {len(pattern)},"
        f" got {channels}; choose a one-channel pattern"
    )
