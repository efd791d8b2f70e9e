"""The picture of a preview: clean, triggered, residual, its spectrum, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure, SubFigure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from backdoor.figures.draw import save
from backdoor.figures.figures import caption, difference, show

# key -> title, unit, format
NUMBERS = {"psnr": ("PSNR", " dB", ".2f"), "ssim": ("SSIM", "", ".4f"), "linf": ("L_inf", " levels", ".2f")}
LEGEND = (
    "residual: triggered − clean, amplified as the label says; mid-grey = no change\n"
    "spectrum: log(1 + |FFT of the residual|), frequency 0 in the middle, mean over the images"
)


@dataclass(frozen=True)
class Look:
    """One trigger on some images.

    Attributes:
        name: what the trigger is, for instance `test`, or `train: poison`.
        clean, triggered: uint8 (n, C, H, W), the images that are shown.
        labels: int64 (n,), before.
        targets: int64 (n,), after; None if any other class will do.
        spectrum: float (H, W), of the residual of all images that were measured.
        numbers: PSNR, SSIM and L_inf of the same.
    """

    name: str
    clean: Tensor
    triggered: Tensor
    labels: Tensor
    targets: Tensor | None
    spectrum: Tensor
    numbers: Mapping[str, float | int]


def preview_figure(looks: Sequence[Look], path: Path, title: str, *, note: str = "", classes: Sequence[str]) -> Path:
    """Three rows of images a look; then the spectra side by side, and the numbers.

    Args:
        looks: at least one.
        path: .png, .svg or .pdf file.
        note: said in red: what a reader must know before believing the picture.
    """
    columns = max(len(look.clean) for look in looks)
    width = max(1.15 * columns + 0.8, 3.6 * len(looks), 7.5)
    figure = Figure(figsize=(width, 3.75 * len(looks) + 3.6), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=12, parse_math=False)
    figure.supxlabel(LEGEND, fontsize=9, parse_math=False)
    parts = figure.subfigures(len(looks) + 1, 1, height_ratios=[3.75] * len(looks) + [2.6], squeeze=False)[:, 0]
    for part, look in zip(parts, looks, strict=False):
        _images(part, look, columns, classes)
    _spectra(parts[-1], looks, note)
    return save(figure, path)


def _images(part: SubFigure, look: Look, columns: int, classes: Sequence[str]) -> None:
    before, after, factor, residual = difference(look.clean, look.triggered)
    numbers = "    ".join(f"{NUMBERS[key][0]} {text}" for key, text in _numbers(look).items())
    part.suptitle(f"{look.name} trigger      {numbers}", fontsize=10, parse_math=False)
    grid = part.subplots(3, columns, squeeze=False)
    rows = {"clean": before, "triggered": after, f"residual ×{factor}": residual}
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        for cell in axes[len(images) :]:
            cell.set_axis_off()
        for cell, image in zip(axes, images, strict=False):
            show(cell, image)
        axes[0].set_ylabel(name, fontsize=10)
    for column in range(len(before)):
        caption(grid[0][column].set_title, int(look.labels[column]), classes)
        if look.targets is not None:
            caption(grid[2][column].set_xlabel, int(look.targets[column]), classes, arrow="→ ")


def _spectra(part: SubFigure, looks: Sequence[Look], note: str) -> None:
    """One picture a look, on one scale."""
    if note:
        part.suptitle(note, fontsize=10, color="#B00020", parse_math=False)
    top = max(float(look.spectrum.max()) for look in looks) or 1.0
    grid = part.subplots(1, len(looks), squeeze=False)[0]
    for axes, look in zip(grid, looks, strict=True):
        height, width = look.spectrum.shape
        # Pixel i of an axis of n holds the frequency i - n // 2.
        extent = (-(width // 2) - 0.5, (width - 1) // 2 + 0.5, (height - 1) // 2 + 0.5, -(height // 2) - 0.5)
        image = axes.imshow(look.spectrum.numpy(), cmap="magma", vmin=0, vmax=top, extent=extent)
        axes.set_title(f"spectrum, {look.name}", fontsize=10, parse_math=False)
        axes.set_xlabel("cycles per image", fontsize=8)
        axes.tick_params(labelsize=7)
        part.colorbar(image, cax=axes.inset_axes((1.05, 0, 0.05, 1)))  # beside the picture, wherever that is


def preview_table(looks: Sequence[Look], console: Console | None = None) -> None:
    """Print trigger x number; a dash for what cannot be known."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Trigger")
    for title in ("Images", "Changed", *(f"{title}{unit}" for title, unit, _ in NUMBERS.values())):
        table.add_column(title, justify="right", no_wrap=True)
    for look in looks:
        cells = [str(look.numbers["images"]), str(look.numbers["changed"]), *_numbers(look, unit=False).values()]
        table.add_row(escape(look.name), *cells)
    (console or Console()).print(table)


def _numbers(look: Look, *, unit: bool = True) -> dict[str, str]:
    """Key -> number as text."""
    texts = {}
    for key, (_, name, form) in NUMBERS.items():
        value = look.numbers.get(key)
        texts[key] = "-" if value is None else f"{value:{form}}{name if unit else ''}"
    return texts
