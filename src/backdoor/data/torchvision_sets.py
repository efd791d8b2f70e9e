"""CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST and GTSRB, through torchvision's classes and in their formats."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backdoor.data.cache import lock, writing
from backdoor.data.decode import ImageFile, stamp_of
from backdoor.data.files import stat_files
from backdoor.data.folder import FileSource
from backdoor.data.names import CIFAR10, CIFAR100, FASHION, GTSRB, GTSRB_FOLDERS
from backdoor.data.pictures import ArrayPictures
from backdoor.data.sources import Parts
from backdoor.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(FileSource):
    """What torchvision can read and download.

    Args:
        root: the folder that torchvision would be given.
        download: fetch what is missing; torchvision checks the md5 of what it fetches.
    """

    download: bool = True

    @abstractmethod
    def expected(self) -> str:
        """What must lie in `root`, for the message."""

    def fetch(self, cache_dir: Path, make: Callable[[], object]) -> None:
        """Let torchvision download, one process at a time."""
        with writing(cache_dir), lock(cache_dir.expanduser() / "data", f"download-{self.name}", self.name):
            make()

    def open(self, make: Callable[[], Any]) -> Any:
        """Make the torchvision data set, or say what to do."""
        try:
            return make()
        except Exception as error:  # torchvision raises RuntimeError, URLError, OSError, EOFError, AssertionError ...
            tried = "could not be read or downloaded" if self.download else "cannot be read"
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            other = "" if self.download else ", or set data.download=true"
            raise UserError(
                f"data.root={self.root}: {self.name} {tried} ({reason}); put {self.expected()} into "
                f"{self.folder.resolve()}{other}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class TorchvisionArrays(TorchvisionSource):
    """A torchvision data set that is one array in memory."""

    @abstractmethod
    def kind(self) -> Any:
        """torchvision's class; imported late, since torchvision takes a second."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that torchvision reads."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Class names."""

    def parts(self, cache_dir: Path) -> Parts:
        """Keyed by the files' sizes and times, so that torchvision reads them only once."""
        root, kind = self.folder, self.kind()
        if not all(path.is_file() for path in self.files()):
            self.fetch(cache_dir, lambda: self.open(lambda: kind(root, train=True, download=self.download)))
        stamps = [stamp_of(path.stat()) for path in self.files()]
        train, test = (
            ArrayPictures(
                f"{self.name} {part}",
                f"{kind.__name__}:{part}:{root.resolve()}:{stamps}",
                partial(self.read, part == "train"),
                self.channels,
                self.size,
                self.limit_of(part),
            )
            for part in ("train", "test")
        )
        return Parts(train, test, self.names())

    def read(self, train: bool) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (N, C, H, W) and int64 (N,)."""
        data = self.open(lambda: self.kind()(self.folder, train=train, download=self.download))
        images = np.asarray(data.data)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        return images, np.asarray(data.targets, np.int64)


@dataclass(frozen=True, kw_only=True)
class Cifar10(TorchvisionArrays):
    """CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test images, 32x32, 10 classes."""

    native: ClassVar[tuple[int, int] | None] = (32, 32)

    def kind(self) -> Any:
        from torchvision.datasets import CIFAR10 as kind

        return kind

    def files(self) -> list[Path]:
        kind = self.kind()
        listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"]]]
        return [self.folder / kind.base_folder / entry[0] for entry in listed]

    def names(self) -> tuple[str, ...]:
        return CIFAR10

    def expected(self) -> str:
        return f"the folder {self.kind().base_folder} of {self.kind().filename}"


@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar10):
    """CIFAR-100 (Krizhevsky 2009): as CIFAR-10, with the 100 fine classes."""

    def kind(self) -> Any:
        from torchvision.datasets import CIFAR100 as kind

        return kind

    def names(self) -> tuple[str, ...]:
        return CIFAR100


@dataclass(frozen=True, kw_only=True)
class Mnist(TorchvisionArrays):
    """MNIST (LeCun et al. 1998): 60,000 train and 10,000 test images, 28x28, 10 classes."""

    native: ClassVar[tuple[int, int] | None] = (28, 28)

    def kind(self) -> Any:
        from torchvision.datasets import MNIST as kind

        return kind

    def files(self) -> list[Path]:
        kind = self.kind()
        return [self.folder / kind.__name__ / "raw" / Path(name).stem for name, _ in kind.resources]

    def names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def expected(self) -> str:
        names = ", ".join(name for name, _ in self.kind().resources)
        return f"{self.kind().__name__}/raw/ with {names} (unpacked, or packed with data.download=true)"


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Mnist):
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): the shape of MNIST, 10 kinds of clothing."""

    def kind(self) -> Any:
        from torchvision.datasets import FashionMNIST as kind

        return kind

    def names(self) -> tuple[str, ...]:
        return FASHION


@dataclass(frozen=True, kw_only=True)
class Gtsrb(TorchvisionSource):
    """German traffic signs (Stallkamp et al. 2012): 39,209 train and 12,630 test images, 43 classes.

    The images are of many sizes. A smaller train set in the same layout (torchvision's archive) is read
    as it is.
    """

    def expected(self) -> str:
        return "gtsrb/ with GTSRB/Training/<class>/*.ppm, GTSRB/Final_Test/Images/*.ppm and GT-final_test.csv"

    def names(self) -> tuple[str, ...]:
        return GTSRB

    def parts(self, cache_dir: Path) -> Parts:
        """torchvision lists the files (and downloads them); our decoder reads them."""
        base = self.folder / "gtsrb" / "GTSRB"
        if not ((base / "Training").is_dir() and (base / "Final_Test" / "Images").is_dir()):
            self.fetch(cache_dir, lambda: (self.listed("train"), self.listed("test")))
        train, test = self.listed("train"), self.listed("test")
        folders = sorted({Path(file.path).parent.name for file in train})
        if folders != list(GTSRB_FOLDERS):
            raise UserError(
                f"data.root={self.root}: expected 43 class folders 00000 to 00042 in gtsrb/GTSRB/Training, "
                f"got {len(folders)}: the copy is not whole"
            )
        return self.file_parts(train, test, self.names())

    def listed(self, split: str) -> list[ImageFile]:
        """The files of `train` or `test`."""
        from torchvision.datasets import GTSRB as kind

        data = self.open(lambda: kind(self.folder, split=split, download=self.download))
        return stat_files(data._samples, "data.root")
