"""Image files become pixels: sizes, modes, damaged files, and a signature that notices every change."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backdoor.data.cache import cached
from backdoor.data.decode import FORMATS, FilePictures, decode_bytes
from backdoor.data.files import scan_classes
from backdoor.errors import UserError
from backdoor.triggers.picture import read_picture


def tree(root: Path, count: int = 6, size: int = 8, kind: str = "png") -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.{kind}")
    return root


def pictures_of(root: Path, **settings: object) -> FilePictures:
    files, _ = scan_classes(root, None, "data.root", "folders")
    return replace(FilePictures("test", files, "data.root"), **settings)  # type: ignore[arg-type]


def test_files_become_the_pixels_that_pil_reads(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", count=40)
    split = cached(pictures_of(root), tmp_path / "cache", progress=False).open()
    assert split.labels.tolist() == [0] * 40 + [1] * 40
    for row, path in ((0, "cat/000.png"), (41, "dog/001.png"), (79, "dog/039.png")):
        expected = np.asarray(Image.open(root / path)).transpose(2, 0, 1)
        np.testing.assert_array_equal(split.images[row].numpy(), expected)


def test_a_changed_file_changes_the_signature_even_if_size_and_mtime_are_set_back(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", kind="ppm")
    path = root / "dog" / "003.ppm"
    old, stat = pictures_of(root).signature(), path.stat()
    assert pictures_of(root).signature() == old
    path.write_bytes(path.read_bytes()[:-3] + b"\0\1\2")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert pictures_of(root).signature() != old


@pytest.mark.parametrize("damage", [b"", b"not an image", None])
def test_a_corrupt_image_names_its_file_or_is_skipped_and_counted(tmp_path: Path, damage: bytes | None) -> None:
    root = tree(tmp_path / "tree", size=64)
    bad = root / "cat" / "000.png"  # the first, which also gives the size
    bad.write_bytes(bad.read_bytes()[:200] if damage is None else damage)
    with pytest.raises(UserError, match=r"^data\.root: cannot decode .*cat/000\.png .*data\.on_corrupt=skip$"):
        cached(pictures_of(root), tmp_path / "cache", progress=False)
    skipping = pictures_of(root, on_corrupt="skip")
    for _ in range(2):
        images = cached(skipping, tmp_path / "cache", progress=False)
        assert (images.count, images.skipped, images.labels.tolist()) == (11, 1, [0] * 5 + [1] * 6)


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_only_corrupt_images_are_an_error_even_when_skipping(tmp_path: Path, size: tuple[int, int] | None) -> None:
    root = tree(tmp_path / "tree")
    for path in root.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"^data\.root: none of the 12 images of test can be decoded"):
        cached(pictures_of(root, on_corrupt="skip", size=size), tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_several_sizes_need_a_size(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    Image.new("RGB", (9, 7)).save(root / "dog" / "004.png")
    with pytest.raises(UserError, match=r"^data\.image_size: .*dog/004\.png is 9x7, the first is 8x8"):
        cached(pictures_of(root), tmp_path / "cache", progress=False)
    images = cached(pictures_of(root, size=(10, 12)), tmp_path / "cache", progress=False)
    assert images.shape == (3, 10, 12)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_become_rgb_or_grey(tmp_path: Path, mode: str) -> None:
    original = Image.radial_gradient("L").resize((16, 12)).convert(mode)
    path = tmp_path / "x.tiff"
    original.save(path)
    for channels, target in ((3, "RGB"), (1, "L")):
        pixels = decode_bytes(path.read_bytes(), channels, None)
        expected = np.asarray(original.convert(target)).reshape(12, 16, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels, expected)


def test_sixteen_bits_are_refused_since_pil_would_clip_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="8 bits a channel"):
        decode_bytes((tmp_path / "x.png").read_bytes(), 3, None)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("where", ["folder", "trigger"])
def test_a_strangers_postscript_named_png_reaches_no_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    root = tree(tmp_path / "tree")
    (root / "dog" / "004.png").write_bytes(EPS)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/called'\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    read = {
        "folder": lambda: cached(pictures_of(root), tmp_path / "cache", progress=False),
        "trigger": lambda: read_picture(str(root / "dog" / "004.png")),
    }
    with pytest.raises(UserError, match=r"004\.png.*none of .*GIF, JPEG, PNG"):
        read[where]()
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_counted_kind_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"image{kind}"
    Image.new("1" if kind == ".pbm" else "L", (6, 4), 1).save(path, FORMATS[kind])
    assert decode_bytes(path.read_bytes(), 3, None).shape == (3, 4, 6)


def test_a_cameras_jpeg_of_two_pictures_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    first.save(tmp_path / "both.jpg", "MPO", save_all=True, append_images=[second])
    pixels = decode_bytes((tmp_path / "both.jpg").read_bytes(), 3, None)
    assert pixels.shape == (3, 4, 6)
    assert pixels[0].mean() > 200 > pixels[2].mean()
