"""Shards: some rows' log-probabilities in a file that is there whole or not at all.

A shard is an ordinary safetensors file, so that any tool reads it: `keys` [rows, 16 bytes],
`counts` [rows] and `values` [their sum] in the dtype that the engine gave them in, nothing rounded.
Its checksums stand in the file's metadata. Once it has its name it never changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

SUFFIX = ".safetensors"
KEY = np.dtype("S16")
"""A row's key. Numpy compares these bytes as they are; only trailing zeros would not count, and
all keys are equally long."""
_NAME = re.compile(rf"[0-9a-f]{{16,}}-[0-9a-f]{{8}}{re.escape(SUFFIX)}")
_FORMAT = "penchant-reference-1"
_DTYPES = {"F32": torch.float32, "F64": torch.float64}
_LONGEST_HEADER = 2**16


class DamagedError(Exception):
    """A shard that does not hold what was written; says why."""


def is_shard(name: str) -> bool:
    """Whether a file of an entry goes by the name of a shard; others are not the store's."""
    return _NAME.fullmatch(name) is not None


def write(folder: Path, owner: str, keys: Sequence[bytes], values: Sequence[Tensor]) -> Path:
    """A new shard of some rows, flushed to the disk.

    Args:
        owner: begins the name it has until it is whole, by which the remains of a killed process
            are told from work that goes on.
        values: one 1-D tensor per key, all of one dtype, on the CPU.
    Raises:
        OSError: it could not be written; nothing of it is left.
    """
    content = _content(keys, values)
    name = f"{time.time_ns():016x}-{os.urandom(4).hex()}"
    temporary = folder / f"{owner}.{name}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        final_path = folder / f"{name}{SUFFIX}"
        os.rename(temporary, final_path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return final_path


def remove_remains(folder: Path, owner: str) -> None:
    """What a process that is gone left half-written."""
    for path in folder.glob(f"{owner}.*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@final
class Shard:
    """A shard mapped into memory: pages are read when they are needed, and no file stays open."""

    def __init__(self, path: Path) -> None:
        """Reads keys and counts.

        Raises:
            DamagedError: they are not those that were written.
            OSError: it cannot be read now, which says nothing about what it holds.
        """
        self.path = path
        self.is_checked = False
        """Whether its values were held against their checksum."""
        try:
            header, start = read_header(path)
            size = path.stat().st_size
            mapped = _mapped(path, size)
            self.keys_N = _part(mapped, header["keys"], start).numpy().reshape(-1).view(KEY)
            counts = _part(mapped, header["counts"], start).view(torch.int32).numpy()
            self.values_T = _part(mapped, header["values"], start).view(
                _DTYPES[header["values"]["dtype"]]
            )
            self._crc = header["__metadata__"]["values_crc"]
            whole = header["__metadata__"]["index_crc"] == _crc(self.keys_N, counts)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DamagedError(str(error).splitlines()[0] if str(error) else repr(error)) from error
        self.starts_N = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=self.starts_N[1:])
        if not whole or len(self.keys_N) != len(counts):
            raise DamagedError("its keys are not those that were written")
        if self.starts_N[-1] != len(self.values_T):
            raise DamagedError("it does not hold as many values as it says")

    def check(self) -> None:
        """Holds the values against their checksum, once. Raises DamagedError."""
        if not self.is_checked and _crc(self.values_T.numpy()) != self._crc:
            raise DamagedError("its values are not those that were written")
        self.is_checked = True

    def row(self, place: int) -> Tensor:
        """The values of one row, as they lie in the file."""
        return self.values_T[self.starts_N[place] : self.starts_N[place + 1]]


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of itself, and where its tensors begin.

    Raises OSError, ValueError or KeyError for what is no shard.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _LONGEST_HEADER:
            raise ValueError("its header is not one of a shard")
        header = json.loads(file.read(length))
    if header["__metadata__"]["format"] != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT}")
    return header, 8 + length


def num_rows(path: Path) -> int:
    """Rows of a shard, from its header; 0 where it cannot be read."""
    try:
        return int(read_header(path)[0]["counts"]["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


def _content(keys: Sequence[bytes], values: Sequence[Tensor]) -> bytes:
    keys_N = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY.itemsize)
    counts_N = np.array([len(one) for one in values], np.int32)
    values_T = torch.cat(list(values))
    tensors = {
        "keys": torch.from_numpy(keys_N.copy()),
        "counts": torch.from_numpy(counts_N),
        "values": values_T,
    }
    return save(
        tensors,
        {
            "format": _FORMAT,
            "index_crc": _crc(keys_N, counts_N),
            "values_crc": _crc(values_T.numpy()),
        },
    )


def _mapped(path: Path, size: int) -> Tensor:
    """A file's bytes. Raises OSError: torch says so otherwise, where there is no memory, say."""
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


def _part(mapped: Tensor, entry: dict[str, Any], start: int) -> Tensor:
    """The bytes of one tensor. Raises ValueError where they are not all there."""
    begin, end = (start + offset for offset in entry["data_offsets"])
    if not start <= begin <= end <= len(mapped):
        raise ValueError(f"it has {len(mapped)} bytes and should have {end} or more")
    return mapped[begin:end]


def _crc(*arrays: np.ndarray) -> str:
    found = 0
    for array in arrays:
        found = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, found)
    return f"{found:08x}"
