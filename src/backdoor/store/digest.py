"""Content digests of tensors and files, for artifact keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from backdoor.state import Split

CHUNK_ROWS = 4096


def tensor_digest(*tensors: Tensor) -> str:
    """Hex digest (32 digits) of the tensors' bytes and shapes."""
    state = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def split_digest(split: Split, rows: Tensor, *, base: str, labels: bool = True) -> str:
    """Digest of a split that equals the data set `base` but for its labels, its index and the images of `rows`.

    Without `labels`, two splits of the same images have the same digest.

    Hashing only what was changed keeps a large memory map unread.
    """
    state = hashlib.blake2b(base.encode(), digest_size=16)
    named = (split.labels, split.index, rows) if labels else (split.index, rows)
    state.update(tensor_digest(*named).encode())
    for chunk in rows.split(CHUNK_ROWS):
        state.update(split.images[chunk].numpy().tobytes())
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Hex digest (32 digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
