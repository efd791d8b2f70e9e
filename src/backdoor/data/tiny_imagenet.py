"""Tiny ImageNet in its original layout, for which torchvision has no class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from backdoor.data.decode import ImageFile
from backdoor.data.files import scan_classes, stat_files
from backdoor.data.folder import FileSource
from backdoor.data.sources import Parts
from backdoor.errors import UserError

ADVICE = (
    "unpack tiny-imagenet-200.zip (Stanford CS231n) so that <data.root>/tiny-imagenet-200 holds "
    "train/<wnid>/images, val/images, val/val_annotations.txt and wnids.txt"
)


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(FileSource):
    """200 classes of 64x64 images; its validation images are the test set (those of `test/` have no labels).

    Classes are the sorted WordNet ids, as an ImageFolder would number them.

    Args:
        root: the folder that holds `tiny-imagenet-200`, or that folder itself.
    """

    native: ClassVar[tuple[int, int] | None] = (64, 64)

    def parts(self, cache_dir: Path) -> Parts:
        """Train files by folder, test files by `val_annotations.txt`."""
        root = self.folder
        root = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
        classes = tuple(sorted(self.read(root / "wnids.txt").split()))
        labels = {name: number for number, name in enumerate(classes)}
        train, _ = scan_classes(root / "train", labels, "data.root", "train/<wnid>/images/*.JPEG", beside=[".txt"])
        return self.file_parts(train, self.annotated(root / "val", labels), classes)

    def annotated(self, folder: Path, labels: dict[str, int]) -> list[ImageFile]:
        """The validation images: a line is `file, wnid, box`, separated by tabs."""
        listing = folder / "val_annotations.txt"
        pairs = []
        for number, line in enumerate(self.read(listing).splitlines(), 1):
            name, _, rest = line.partition("\t")
            wnid = rest.split("\t")[0]
            if wnid not in labels:
                raise UserError(f"data.root: {listing}, line {number}: {wnid!r} is not in wnids.txt")
            pairs.append((str(folder / "images" / name), labels[wnid]))
        return sorted(stat_files(pairs, "data.root"), key=lambda file: file.label)

    def read(self, path: Path) -> str:
        """A text file of the data set."""
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.root={self.root}: cannot read {path} ({error}); {ADVICE}") from None
