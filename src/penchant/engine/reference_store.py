"""Reference log-probabilities per token: computed once per tree, then looked up by every run.

The reference is what the run started from (or the model that the recipe names), so a forward pass
before the first update gives it for every epoch, with no second model in memory while training.
Values are kept as the engine gave them, tree by tree: so a policy that equals the reference starts
at a difference of nothing, in half precision too, where the order of branches shows.
"""

from __future__ import annotations

import hashlib
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from penchant.data.pack import TreeSizes
from penchant.engine import Engine
from penchant.engine.memory import halving
from penchant.engine.processes import ALONE, Processes
from penchant.engine.reference.claims import new_owner
from penchant.engine.reference.entry import Entry
from penchant.engine.reference.rounds import Round, Rounds
from penchant.engine.reference.shards import KEY
from penchant.types import TokenLogps, TokenTree

ROUND_SECONDS = 20.0
"""What a kill may cost, and how long rows are kept from other processes, about [s]."""
_EXCHANGED = 4096
"""Rows that processes send each other at a time."""


@final
class ReferenceStore:
    """Token-level log-probabilities by content: trees with equal tokens share an entry."""

    def __init__(self, entry: Entry | None = None, *, round_seconds: float = ROUND_SECONDS) -> None:
        """A store that keeps rows in an entry on disk; without one, in memory.

        Args:
            entry: of the model and the way in which it computes; no other may fill the store.
        """
        self.rows_computed = 0
        self.rows_reused = 0
        self._entry = entry
        self._memory: dict[bytes, Tensor] = {}
        self._unwritten: dict[bytes, Tensor] = {}
        self._written = 0.0
        self._round_seconds = round_seconds
        self._told = False

    def __len__(self) -> int:
        return len(self._memory) + (0 if self._entry is None else len(self._entry))

    @torch.no_grad()
    def fill(
        self,
        engine: Engine,
        trees: Sequence[TokenTree],
        token_budget: int,
        on_rows: Callable[[int], None] = lambda rows: None,
        processes: Processes = ALONE,
        on_found: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Computes what is not there yet; the model is put in evaluation mode meanwhile.

        Args:
            engine: of the reference model.
            on_rows: called after each micro-batch with its number of trees, over all processes.
            processes: each computes its part, and all have everything in the end.
            on_found: called with numbers of trees that need not be computed.
        """
        was_training = engine.model.training
        engine.model.eval()
        work = _Work(engine, trees, [content_key(tree) for tree in trees], processes, on_rows)
        try:
            computed = self._fill(work, token_budget, on_found)
        finally:
            engine.model.train(was_training)
        self._exchange(work.keys, processes)
        self._used(work.keys, processes)
        self.rows_computed += computed
        self.rows_reused += len(trees) - computed

    def take(self, trees: Sequence[TokenTree], processes: Processes = ALONE) -> bool:
        """Whether every tree is there, so that no model is needed; they then count as reused."""
        keys = [content_key(tree) for tree in trees]
        found = False
        if self._entry is not None and processes.is_main:
            found = bool(self._entry.find(np.array(keys, KEY)).all())
        if not processes.gather(found)[0]:
            return False
        self._exchange(keys, processes)
        self._used(keys, processes)
        self.rows_reused += len(trees)
        return True

    def logps(self, trees: Sequence[TokenTree], device: torch.device) -> TokenLogps:
        """What the reference says of these trees, in the engine's order; KeyError if unfilled."""
        found = [self._row(content_key(tree)) for tree in trees]
        lengths = [sum(mask) for tree in trees for mask in tree.response_masks]
        return TokenLogps(torch.cat(found).to(device), torch.tensor(lengths, device=device))

    def _fill(self, work: _Work, token_budget: int, on_found: Callable[[int], None]) -> int:
        """Rounds of claiming, computing and storing; returns how many trees were computed."""
        places: dict[bytes, int] = {}
        for place, key in enumerate(work.keys):
            if key not in self._memory:
                places.setdefault(key, place)
        on_found(len(work.keys) - len(places))
        rounds = None
        if work.processes.is_main:
            rounds = Rounds(
                self._entry,
                work.keys,
                [*places.values()],
                work.costs_N,
                least=token_budget * work.processes.size,
                seconds=self._round_seconds,
            )
        computed = 0
        try:
            while True:
                now = work.processes.gather(rounds.next() if rounds else None)[0]
                if now is None:
                    return computed
                on_found(now.num_found)
                token_budget = self._compute(work, now, token_budget)
                computed += len(now.places)
                work.processes.barrier()  # all have stored what was claimed
                if rounds:
                    rounds.done()
        finally:
            if rounds:
                rounds.give_up()

    def _compute(self, work: _Work, now: Round, token_budget: int) -> int:
        """This process's share of a round, stored; returns the token budget that sufficed."""
        if not now.places:
            return token_budget
        done: set[int] = set()
        self._written = time.monotonic()

        def compute(budget: int) -> None:
            for share in work.processes.share(work.sizes, now.places, budget, work.engine.padded):
                new = [i for i in share.batch if i not in done] if share.counts else []
                if new or work.processes.sharded:
                    batch = [work.trees[i] for i in share.batch]
                    logps = work.engine.logps(batch)
                    values_T = logps.values_T.to("cpu", copy=True)  # once, not row by row
                    rows = TokenLogps(values_T, logps.lengths_R).per_tree(batch)
                    if share.counts:
                        keys = [work.keys[i] for i in share.batch]
                        self._unwritten |= dict(zip(keys, rows, strict=True))
                    done.update(new)
                work.on_rows(len(new) * work.processes.size)
                if time.monotonic() - self._written > self._round_seconds:
                    self._write(now.owner)

        smallest = int(work.sizes.num_tokens_N[now.places].min())
        try:
            with work.engine.precision():
                return halving(compute, token_budget, work.processes, smallest=smallest)[1]
        finally:
            self._write(now.owner)

    def _write(self, owner: str) -> None:
        """Stores what was computed; in memory where it cannot go to the disk."""
        finite = {key: row for key, row in self._unwritten.items() if row.isfinite().all()}
        if self._entry is not None and finite:
            try:
                self._entry.write(owner, [*finite], [*finite.values()])
                for key in finite:
                    del self._unwritten[key]
            except OSError as error:
                self._tell(self._entry.folder, error)
        self._memory |= self._unwritten
        self._unwritten = {}
        self._written = time.monotonic()

    def _exchange(self, keys: Sequence[bytes], processes: Processes) -> None:
        """Every process gets the rows it lacks from the first one that has them.

        With one folder for all there are none, but for rows that could not be written. The main
        process stores what it gets: it alone looks up what need not be computed the next time.
        """
        if processes.size == 1:
            return
        lacking = processes.gather(self._lacking(keys))
        wanted = sorted(set().union(*lacking))
        for start in range(0, len(wanted), _EXCHANGED):
            part = wanted[start : start + _EXCHANGED]
            own = {
                key: self._row(key).clone()  # a view would be sent with all that it is a view of
                for key in part
                if key not in lacking[processes.rank]
                and all(key in rows for rows in lacking[: processes.rank])
            }
            for found in processes.gather(own):
                for key in found.keys() & lacking[processes.rank]:
                    (self._unwritten if processes.is_main else self._memory)[key] = found[key]
            if self._unwritten:
                self._write(new_owner())

    def _used(self, keys: Sequence[bytes], processes: Processes) -> None:
        if self._entry is not None and processes.is_main:
            self._entry.touch(np.array(keys, KEY))

    def _lacking(self, keys: Sequence[bytes]) -> set[bytes]:
        rows = [key for key in dict.fromkeys(keys) if key not in self._memory]
        if self._entry is None or not rows:
            return set(rows)
        self._entry.refresh()
        stored = self._entry.find(np.array(rows, KEY))
        return {key for key, there in zip(rows, stored, strict=True) if not there}

    def _row(self, key: bytes) -> Tensor:
        """The values of one tree. Raises KeyError where it is not there."""
        found = self._memory.get(key)
        if found is None and self._entry is not None:
            found = self._entry.get(key)
        if found is None:
            raise KeyError(f"no reference was computed for a tree with the key {key.hex()}")
        return found

    def _tell(self, folder: Path, error: OSError) -> None:
        """Once: where the rows are, and why."""
        if not self._told:
            print(
                f"reference: rows cannot be stored in {folder} ({error.strerror or error}); "
                "they are kept in memory, for this run only",
                file=sys.stderr,
            )
        self._told = True


@dataclass(frozen=True)
class _Work:
    """What is to be filled, and by whom."""

    engine: Engine
    trees: Sequence[TokenTree]
    keys: Sequence[bytes]
    processes: Processes
    on_rows: Callable[[int], None]

    @cached_property
    def sizes(self) -> TreeSizes:
        """Of all trees."""
        return TreeSizes.of(self.trees)

    @property
    def costs_N(self) -> np.ndarray:
        """Tokens that each tree costs."""
        if self.engine.padded:
            return self.sizes.longest_N * self.sizes.num_rows_N
        return self.sizes.num_tokens_N


def content_key(tree: TokenTree) -> bytes:
    """Digest of everything about a tree that can change a log-probability or its place."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in (tree.prompt_ids, *tree.response_ids):
        digest.update(len(ids).to_bytes(4, "little"))
        digest.update(array("q", ids).tobytes())
    for mask in tree.response_masks:
        digest.update(bytes(mask))
    return digest.digest()
