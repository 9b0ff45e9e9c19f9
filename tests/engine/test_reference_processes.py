"""Two real processes that fill one store: over a damaged shard, and with a cache each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from penchant import engine
from penchant.engine.processes import Processes
from penchant.engine.reference.entry import Entry
from penchant.engine.reference_store import ReferenceStore
from tests.engine.test_reference_entry import CPU, NAME, shards_of, store_in
from tests.tiny import random_trees, tiny_model
from tests.two_processes import results_of, take_part

TREES = random_trees(20)
BUDGET = 60


def fill(root: Path) -> dict[str, Any]:
    """As one process of two: opens the entry, then fills it with the other."""
    processes = Processes.current()
    store = ReferenceStore(Entry(root, NAME, {}, hold_it=processes.is_main))
    dist.barrier()  # both have mapped what lies there
    store.fill(engine.prepare(tiny_model()), TREES, BUDGET, processes=processes)
    values_T = store.logps(TREES, CPU).values_T.clone()
    return {"values": values_T, "computed": store.rows_computed}


def work(folder: Path) -> dict[str, Any]:
    """The shared and damaged store, then twice with a cache for each process."""
    own = folder / f"cache-{dist.get_rank()}"
    return {name: fill(root) for name, root in (("shared", folder), ("1", own), ("2", own))}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, list[Any]]:
    """The folder, the right values, and what the processes came to."""
    folder = tmp_path_factory.mktemp("processes")
    store = store_in(folder)
    store.fill(engine.prepare(tiny_model()), TREES, BUDGET)
    expected = store.logps(TREES, CPU).values_T.clone()
    del store
    path = shards_of(folder)[0]
    content = bytearray(path.read_bytes())
    first = content.index(expected[:4].numpy().tobytes())
    content[first + 3] ^= 0x10  # the exponent of the first value
    path.write_bytes(content)
    return folder, expected, results_of("tests.engine.test_reference_processes", folder)


def test_no_process_uses_a_damaged_value(filled: tuple[Path, torch.Tensor, list[Any]]) -> None:
    _, expected, found = filled
    for one in found:
        assert one["shared"]["computed"] > 0
        torch.testing.assert_close(one["shared"]["values"], expected)


def test_with_a_cache_each_the_second_run_computes_nothing(
    filled: tuple[Path, torch.Tensor, list[Any]],
) -> None:
    folder, expected, found = filled
    for one in found:
        assert [one[name]["computed"] for name in "12"] == [len(TREES), 0]
        for name in "12":
            torch.testing.assert_close(one[name]["values"], expected)
    main, other = (Entry(folder / f"cache-{rank}", NAME, {}) for rank in (0, 1))
    assert len(main) == len(TREES) > len(other) > 0


if __name__ == "__main__":
    take_part(work)
