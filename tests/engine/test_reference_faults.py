"""What the store must leave alone: what others put there, and what cannot be read just now."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penchant import engine
from penchant.engine.reference import catalogue, shards
from penchant.engine.reference.entry import Entry
from penchant.engine.reference.shards import KEY, Shard
from penchant.engine.reference_store import ReferenceStore
from tests.engine.test_reference_entry import CPU, NAME, OTHER, fill_entry, shards_of, store_in
from tests.tiny import random_trees, tiny_model

DAY = 24 * 3600
ROW = b"a row's own key!"


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (time.time() - 10 * DAY,) * 2)


def test_pruning_leaves_what_the_store_did_not_make(tmp_path: Path) -> None:
    """A folder of somebody's models beside the entries, or a file of theirs within one."""
    model = tmp_path / "my-model" / "model.safetensors"
    model.parent.mkdir()
    model.write_bytes(b"weights")
    (tmp_path / "notes").mkdir()
    shard = fill_entry(tmp_path, NAME, 10 * DAY, 0)
    mine = shard.with_name("mine.safetensors")
    mine.write_bytes(b"weights")
    temporary = shard.with_name("mine.tmp")
    temporary.write_bytes(b"half a download")
    age(model, model.parent, tmp_path / "notes", mine, temporary, shard.parent)
    assert [one.name for one in catalogue.entries(tmp_path)] == [NAME]
    pruned = catalogue.prune(tmp_path, 0, unused_since=time.time(), damaged=True)
    assert [path for path, _ in pruned.removed] == [shard] and not pruned.left
    assert not shard.exists() and (tmp_path / "notes").is_dir()
    assert model.exists() and mine.exists() and temporary.exists()


def test_opening_an_entry_leaves_what_the_store_did_not_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_entry(tmp_path, NAME, 0, 0)
    foreign = [tmp_path / NAME / name for name in ("mine.safetensors", "mine.tmp")]
    for path in foreign:
        path.write_bytes(b"no shard")
    age(*foreign)
    assert len(Entry(tmp_path, NAME, {})) == 5
    assert all(path.exists() for path in foreign) and not capsys.readouterr().err


def test_an_entry_without_a_lock_yet_is_as_old_as_its_folder(tmp_path: Path) -> None:
    """Another process may have just made it, and be about to lock it."""
    (tmp_path / OTHER).mkdir()
    catalogue.prune(tmp_path, 0)
    assert (tmp_path / OTHER).is_dir()
    age(tmp_path / OTHER)
    catalogue.prune(tmp_path, 0)
    assert not (tmp_path / OTHER).exists()


def test_only_a_digest_names_an_entry(tmp_path: Path) -> None:
    for name in ("entry", "..", "E" * 32, "e" * 33):
        with pytest.raises(FileNotFoundError, match="no entry's name"):
            Entry(tmp_path, name, {})
    assert not list(tmp_path.iterdir())


def test_a_shard_that_cannot_be_read_stays_and_its_rows_are_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees, prepared = random_trees(20), engine.prepare(tiny_model())
    first = store_in(tmp_path)
    first.fill(prepared, trees[:10], 10_000)
    first.fill(prepared, trees[10:], 10_000)
    expected = first.logps(trees, CPU).values_T.clone()
    del first
    path, aside = shards_of(tmp_path)[0], tmp_path / "aside"
    path.rename(aside)
    path.mkdir()  # to be opened by nobody, root neither
    store = store_in(tmp_path)
    store.fill(prepared, trees, 10_000)
    assert (store.rows_computed, store.rows_reused) == (10, 10)
    torch.testing.assert_close(store.logps(trees, CPU).values_T, expected)
    (told,) = capsys.readouterr().err.splitlines()
    assert f"{path} cannot be read now (Is a directory)" in told and "damaged" not in told
    assert path.is_dir()
    assert [fault for fault in catalogue.faults(path.parent) if fault.path == path] == [
        catalogue.Fault(path, "Is a directory", is_damaged=False)
    ]
    path.rmdir()
    aside.rename(path)
    Shard(path).check()


def test_pruning_claims_no_more_than_it_removed(tmp_path: Path) -> None:
    """What cannot be removed takes its room; so the next ones go instead."""
    paths = [fill_entry(tmp_path, letter * 32, 500 - n, 0) for n, letter in enumerate("abc")]
    size = paths[1].stat().st_size
    paths[0].unlink()
    paths[0].mkdir()
    (paths[0] / "file").write_bytes(b"")
    age(paths[0])
    stuck = paths[0].stat().st_size
    pruned = catalogue.prune(tmp_path, stuck + size)
    assert pruned.removed == [(paths[1], size)]
    assert [path for path, _ in pruned.left] == [paths[0]]
    assert "cannot be removed" in pruned.left[0][1]
    assert [path.exists() for path in paths] == [True, False, True]
    pruned = catalogue.prune(tmp_path, float("inf"), damaged=True)
    assert not pruned.removed
    assert pruned.left == [(paths[0], "it cannot be read: Is a directory")]


@contextmanager
def limit(what: int, number: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def test_without_a_free_file_handle_nothing_counts_as_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Entry(tmp_path, NAME, {})
    path = fill_entry(tmp_path, NAME, 0, 0)
    lowest = os.open(path, os.O_RDONLY)
    os.close(lowest)
    with limit(resource.RLIMIT_NOFILE, lowest):
        with pytest.raises(OSError, match="Too many open files"):
            Shard(path)
        assert not entry.refresh() and not entry.refresh()
    (told,) = capsys.readouterr().err.splitlines()
    assert f"{path.parent} cannot be read now (Too many open files)" in told
    assert entry.refresh() and len(entry) == 5


def test_without_memory_to_map_it_no_shard_counts_as_damaged(tmp_path: Path) -> None:
    path = shards.write(tmp_path, "owner", [ROW], [torch.zeros(2**25)])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with (
        limit(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**25),
        pytest.raises(OSError, match="Cannot allocate memory"),
    ):
        Shard(path)
    Shard(path).check()


def test_of_a_row_stored_twice_the_newer_counts_unless_one_was_checked(tmp_path: Path) -> None:
    """The newer may be there because the older is damaged; what a run uses stays what it is."""
    keys_N = np.array([ROW], KEY)
    writer = Entry(tmp_path, NAME, {})
    writer.write("owner", [ROW], [torch.tensor([1.0])])
    early = Entry(tmp_path, NAME, {})
    assert early.find(keys_N).all()
    writer.write("owner", [ROW], [torch.tensor([2.0])])
    newest = shards_of(tmp_path)[-1]
    late = Entry(tmp_path, NAME, {})
    assert early.refresh()
    assert [entry.get(ROW) for entry in (early, late)] == [1.0, 2.0]
    content = bytearray(newest.read_bytes())
    content[content.index(torch.tensor([2.0]).numpy().tobytes())] ^= 1
    newest.write_bytes(content)
    assert Entry(tmp_path, NAME, {}).get(ROW) == 1.0 and not newest.exists()


def test_what_was_written_is_read_back_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that keeps other bytes than it was given: the rows stay in memory."""
    write = shards.write

    def faulty(*arguments: Any) -> Path:
        path = write(*arguments)
        content = bytearray(path.read_bytes())
        content[-5 * 16 - 3] ^= 1  # the keys of five rows come last
        path.write_bytes(content)
        return path

    trees, prepared = random_trees(5), engine.prepare(tiny_model())
    store, whole = store_in(tmp_path), ReferenceStore()
    monkeypatch.setattr(shards, "write", faulty)
    for one in (store, whole):
        one.fill(prepared, trees, 10_000)
    assert torch.equal(store.logps(trees, CPU).values_T, whole.logps(trees, CPU).values_T)
    assert not shards_of(tmp_path) and "was written and is damaged" in capsys.readouterr().err
