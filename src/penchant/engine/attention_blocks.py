"""Blocks of a tree's attention on a CPU: which queries meet which keys, copied and put back.

H  query heads;  G  key and value heads, each for H / G query heads
R  queries of a block, W  keys that it meets, both rounded up;  D  width of a head
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from penchant.engine.spans import TreeSpan
from penchant.engine.workspace import Workspace

ROWS = 128
"""R of all blocks of a path but the last."""
_LAST_ROWS = 32
"""R of the last one is a multiple of it."""
_KEYS = 64
"""W is a multiple of it."""


@dataclass(frozen=True)
class Block:
    """Queries that follow each other."""

    queries: slice
    """Of the flat sequence."""
    rows: int
    first: int
    """Keys of the path before the first query's own."""
    width: int


@dataclass(frozen=True)
class Path:
    """A response behind its prompt; the queries of the first one are the prompt's too."""

    queries: slice
    prompt: slice
    own: slice
    num_shared: int
    """Tokens of the prompt."""
    num_keys: int
    """Tokens of the path."""

    @property
    def blocks(self) -> Iterator[Block]:
        """All queries, in order."""
        offset = self.num_keys - (self.queries.stop - self.queries.start)
        for start in range(self.queries.start, self.queries.stop, ROWS):
            queries = slice(start, min(start + ROWS, self.queries.stop))
            count = queries.stop - start
            first = offset + start - self.queries.start
            yield Block(queries, _up(count, _LAST_ROWS), first, round_up(first + count))


def paths_of(span: TreeSpan) -> Iterator[Path]:
    """The tree's paths, that with the prompt's queries first."""
    prompt, shared = slice(span.start, span.prompt_end), span.prompt_end - span.start
    for queries in (slice(span.start, span.trunk_end), *(slice(*other) for other in span.others)):
        own = slice(max(queries.start, prompt.stop), queries.stop)
        yield Path(queries, prompt, own, shared, shared + own.stop - own.start)


def round_up(count: int) -> int:
    """Keys of a buffer for so many."""
    return _up(count, _KEYS)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def rows_of(name: str, tokens: Tensor, block: Block) -> Tensor:
    """A copy of a block's queries, or of what belongs to them, [H, R, D]; those filled in are 0."""
    heads, _, width = tokens.shape
    count = block.queries.stop - block.queries.start
    rows = buffer(name, (heads, block.rows, width), tokens.dtype)
    rows[:, :count] = tokens[:, block.queries]
    if count < block.rows:
        rows[:, count:] = 0
    return rows


def place(rows: Tensor, block: Block, tokens: Tensor) -> None:
    """Writes rows, [H, R, D] or as many elements, to the block's places in [H, N, D]."""
    count = block.queries.stop - block.queries.start
    tokens[:, block.queries] = rows.view(tokens.shape[0], block.rows, -1)[:, :count]


def keys_of(name: str, tokens: Tensor, path: Path) -> Tensor:
    """A copy of the path's keys or values, [G, W, D]; those filled in are 0."""
    heads, _, width = tokens.shape
    keys = buffer(name, (heads, round_up(path.num_keys), width), tokens.dtype)
    keys[:, : path.num_shared] = tokens[:, path.prompt]
    keys[:, path.num_shared : path.num_keys] = tokens[:, path.own]
    keys[:, path.num_keys :] = 0
    return keys


def prefix(name: str, keys: Tensor, block: Block) -> Tensor:
    """The keys of a block in memory of their own; otherwise torch transposes a copy, slowly."""
    if keys.shape[1] == block.width:
        return keys
    shape = (keys.shape[0], block.width, keys.shape[2])
    return buffer(f"first {name}", shape, keys.dtype).copy_(keys[:, : block.width])


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores and sums."""
    return torch.promote_types(dtype, torch.float32)


def converted(name: str, part: Tensor, dtype: torch.dtype) -> Tensor:
    """The same values in a buffer of this dtype, or as they are."""
    return part if part.dtype == dtype else buffer(name, tuple(part.shape), dtype).copy_(part)


class _Buffers(threading.local):
    """A thread's memory, kept from call to call: fresh pages cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.empty: dict[torch.dtype, Tensor] = {}


_buffers = _Buffers()


def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised; the one asked for before under this name and dtype is lost."""
    if dtype not in _buffers.empty:
        _buffers.empty[dtype] = torch.empty(0, dtype=dtype)
    like = _buffers.empty[dtype]
    return _buffers.workspace.matrix(name, 1, math.prod(shape), like).view(shape)


def release() -> None:
    """Gives back what this thread has kept."""
    _buffers.workspace.clear()
