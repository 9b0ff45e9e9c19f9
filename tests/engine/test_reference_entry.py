"""Rows on disk: exact, checked, shared, claimed by one process at a time, pruned when unused."""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from penchant import engine, objectives
from penchant.engine.reference import catalogue, claims, locks
from penchant.engine.reference.entry import Entry
from penchant.engine.reference.shards import KEY
from penchant.engine.reference_store import ReferenceStore, content_key
from penchant.errors import RecipeError
from penchant.train.step import Step
from tests.tiny import mixed_trees, random_trees, tiny_model, tree_of

CPU = torch.device("cpu")
NAME, OLD, OTHER = ("e" * 32, "a" * 32, "b" * 32)
BUDGET = 60
"""Tokens; some trees a micro-batch."""


class Unwilling:
    """An engine whose model must not run: everything has to be there."""

    def __init__(self, inner: engine.Engine) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def logps(self, trees: Any) -> Any:
        raise AssertionError(f"{len(trees)} trees ran through the model again")


def store_in(folder: Path, name: str = NAME, **settings: Any) -> ReferenceStore:
    return ReferenceStore(Entry(folder, name, {"key": {}}), **settings)


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def keys_of(trees: Any) -> np.ndarray:
    return np.array([content_key(tree) for tree in trees], KEY)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_what_comes_back_are_the_bits_that_were_computed(
    tmp_path: Path, precision: str, layout: Any
) -> None:
    """An equal policy then starts at log 2 itself, in half precision too."""
    dtype = getattr(torch, precision)
    model = tiny_model().to(torch.float64 if precision == "float64" else torch.float32)
    prepared = engine.prepare(model, layout, dtype=dtype)
    trees = random_trees(7)
    store_in(tmp_path).fill(prepared, trees, 10_000)
    store = store_in(tmp_path)
    unwilling: Any = Unwilling(prepared)
    store.fill(unwilling, trees, 10_000)
    assert (store.rows_computed, store.rows_reused) == (0, 7)
    computed = ReferenceStore()
    computed.fill(prepared, trees, 10_000)
    found, expected = (one.logps(trees, CPU) for one in (store, computed))
    assert torch.equal(found.values_T, expected.values_T)
    assert found.values_T.dtype == expected.values_T.dtype
    assert torch.equal(found.lengths_R, expected.lengths_R)
    means = Step(prepared, objectives.load("dpo", beta=0.5), store, 10_000).evaluate(trees).means()
    assert means["loss"] == pytest.approx(math.log(2), rel=1e-15, abs=0)
    assert means["rewards/margins"] == 0.0


def test_a_shard_holds_scored_tokens_of_each_row_and_nothing_else(tmp_path: Path) -> None:
    """No distribution is ever stored: values are one number per scored token."""
    trees = mixed_trees()
    prepared = engine.prepare(tiny_model())
    store_in(tmp_path).fill(prepared, trees, 10_000)
    (path,) = shards_of(tmp_path)
    content = load_file(path)  # any tool reads it
    assert sorted(content) == ["counts", "keys", "values"]
    lengths = {content_key(tree): sum(map(sum, tree.response_masks)) for tree in trees}
    rows = [row.numpy().tobytes() for row in content["keys"]]
    assert content["counts"].tolist() == [lengths[row] for row in rows]
    assert len(content["values"]) == sum(lengths.values()) and content["values"].ndim == 1


def test_rows_come_in_rounds_and_all_of_them_are_right(tmp_path: Path) -> None:
    trees = random_trees(40) + random_trees(5)  # five of them twice
    prepared = engine.prepare(tiny_model().double())
    store = store_in(tmp_path, round_seconds=1e-6)
    counted: list[int] = []
    found: list[int] = []
    store.fill(prepared, trees, BUDGET, counted.append, on_found=found.append)
    assert len(shards_of(tmp_path)) > 5
    assert sum(counted) == 40 and sum(found) == 5
    assert (store.rows_computed, store.rows_reused, len(store)) == (40, 5, 40)
    with torch.no_grad():
        expected = torch.cat([prepared.logps([tree]).values_T for tree in trees])
    torch.testing.assert_close(store.logps(trees, CPU).values_T, expected)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def flipped(place: Callable[[int], int]) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place(len(content))] ^= 0x10
        path.write_bytes(content)

    return flip


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut short": cut_short,
    "empty": lambda path: os.truncate(path, 0),
    "a bit of the header": flipped(lambda size: 9),
    "its length": flipped(lambda size: 0),
    "a bit of the first value": flipped(
        lambda size: size - 10 * 16 - 3  # the keys of ten rows come last
    ),
    "a bit of a key": flipped(lambda size: size - 1),
    "something else": lambda path: path.write_bytes(b"\0" * 5000),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_computed_again_and_said_so(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = random_trees(20)
    prepared = engine.prepare(tiny_model())
    first = store_in(tmp_path)
    first.fill(prepared, trees[:10], 10_000)
    first.fill(prepared, trees[10:], 10_000)
    expected = first.logps(trees, CPU).values_T.clone()
    del first
    bad, good = shards_of(tmp_path)
    DAMAGES[name](bad)
    store = store_in(tmp_path)
    store.fill(prepared, trees, 10_000)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"the shard {bad} is damaged" in told[0], told
    assert (store.rows_computed, store.rows_reused) == (10, 10)
    assert not bad.exists() and good.exists()
    torch.testing.assert_close(store.logps(trees, CPU).values_T, expected)
    again = store_in(tmp_path)
    unwilling: Any = Unwilling(prepared)
    again.fill(unwilling, trees, 10_000)


def test_numbers_that_are_none_are_not_stored(tmp_path: Path) -> None:
    """What a fault of the machine made once must not be the reference for ever."""
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")
    prepared, store = engine.prepare(model, "plain"), store_in(tmp_path)
    trees = random_trees(3)
    store.fill(prepared, trees, 10_000)
    assert store.logps(trees, CPU).values_T.isnan().all()
    assert not shards_of(tmp_path)


@contextmanager
def full_disk() -> Iterator[None]:
    """Every write of a byte to a file fails, as it does on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_rows_are_kept_in_memory_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = random_trees(12)
    prepared = engine.prepare(tiny_model())
    store = store_in(tmp_path, round_seconds=1e-6)
    with full_disk():
        store.fill(prepared, trees, BUDGET)
    (told,) = capsys.readouterr().err.splitlines()
    assert "cannot be stored" in told and "kept in memory" in told and str(tmp_path) in told
    assert (store.rows_computed, len(store)) == (12, 12)
    with torch.no_grad():
        expected = prepared.logps(trees).values_T
    torch.testing.assert_close(store.logps(trees, CPU).values_T, expected)
    assert not shards_of(tmp_path) and not list(tmp_path.rglob("*.tmp"))
    more = random_trees(3, seed=5)
    store.fill(prepared, more, BUDGET)  # there is room again
    assert shards_of(tmp_path)


def test_two_never_claim_one_row_and_what_is_given_up_is_free(tmp_path: Path) -> None:
    keys_N, ones_N = keys_of(random_trees(10)), np.ones(10)
    one, two = (Entry(tmp_path, NAME, {}) for _ in range(2))
    held, mine, _ = one.claim(keys_N, ones_N, 4)
    kept, yours, _ = two.claim(keys_N, ones_N, 100)
    assert (mine, yours) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])
    assert two.claim(keys_N, ones_N, 100)[1] == []
    assert two.claim(keys_N, ones_N, 100, anyway=True)[1] == list(range(10))
    bits = [bytes(keys_N[place]).ljust(16, b"\0") for place in mine]
    one.write(held.owner, bits, [torch.ones(2)] * 4)
    held.release()
    kept.release()
    _, free, stored = two.claim(keys_N, ones_N, 100)
    assert free == [4, 5, 6, 7, 8, 9] and stored.tolist() == [True] * 4 + [False] * 6


def test_the_claim_and_the_remains_of_a_killed_process_are_free_at_once(tmp_path: Path) -> None:
    keys_N, ones_N = keys_of(random_trees(6)), np.ones(6)
    entry = Entry(tmp_path, NAME, {})
    child = os.fork()
    if child == 0:
        own = Entry(tmp_path, NAME, {})
        claim = own.claim(keys_N, ones_N, 100)[0]
        (own.folder / f"{claim.owner}.half.tmp").write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(entry.folder.glob("*.tmp")) and list(entry.folder.glob("claims/*.claim"))
    claim, mine, _ = entry.claim(keys_N, ones_N, 100)
    assert mine == [0, 1, 2, 3, 4, 5]
    assert not list(entry.folder.glob("*.tmp"))
    claim.release()
    assert [path.name for path in (entry.folder / "claims").iterdir()] == ["lock"]


def test_a_child_does_not_keep_what_its_parent_gave_up(tmp_path: Path) -> None:
    """A forked process has its parent's open files; the lock must end with the parent's."""
    lock = locks.hold(tmp_path / "lock")
    assert lock is not None
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        assert locks.hold(tmp_path / "lock") is None
        lock.release()
        again = locks.hold(tmp_path / "lock", patience=10)
        assert again is not None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_without_locks_everything_works_but_nobody_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some systems and network file systems have none."""
    monkeypatch.setattr(locks, "fcntl", None)
    trees = random_trees(6)
    prepared = engine.prepare(tiny_model())
    store_in(tmp_path).fill(prepared, trees, BUDGET)
    store = store_in(tmp_path)
    unwilling: Any = Unwilling(prepared)
    store.fill(unwilling, trees, BUDGET)
    assert store.rows_reused == 6
    assert claims.Claims(tmp_path / NAME).take([b""], locked=False).owner
    assert not catalogue.prune(tmp_path, 0).removed, "used today; nobody can tell whether still"
    Entry(tmp_path, OTHER, {})
    catalogue.prune(tmp_path, 0)
    assert (tmp_path / OTHER).is_dir(), "another process may be about to write its first shard"
    os.utime(tmp_path / OTHER, (time.time() - 2 * 86400,) * 2)
    catalogue.prune(tmp_path, 0)
    assert not (tmp_path / OTHER).exists()


def fill_entry(root: Path, name: str, age: float, seed: int) -> Path:
    """An entry of one shard that was last used some time ago [s]."""
    store = store_in(root, name)
    store.fill(engine.prepare(tiny_model()), random_trees(5, seed=seed), 10_000)
    (path,) = shards_of(root / name)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_pruning_takes_what_was_unused_for_longest_and_nothing_in_use(tmp_path: Path) -> None:
    names = [letter * 32 for letter in "abcd"]
    paths = [fill_entry(tmp_path, name, age, 0) for name, age in zip(names, (400, 300, 200, 100))]
    sizes = [path.stat().st_size for path in paths]
    held = Entry(tmp_path, names[0], {})
    room = sizes[0] + sizes[3]
    assert catalogue.prune(tmp_path, room, dry_run=True).removed == [
        (paths[1], sizes[1]), (paths[2], sizes[2]),
    ]  # fmt: skip
    assert all(path.exists() for path in paths)
    catalogue.prune(tmp_path, room)
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert not (tmp_path / names[1]).exists()
    catalogue.prune(tmp_path, 0)
    assert [path.exists() for path in paths] == [True, False, False, False]
    held.close()
    catalogue.prune(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_a_run_prunes_its_own_entry_but_for_what_it_uses(tmp_path: Path) -> None:
    """One model, many data sets: the old ones go, also while the model is in use."""
    old = fill_entry(tmp_path, OLD, 500, seed=1)
    entry = Entry(tmp_path, OLD, {})
    store = ReferenceStore(entry)
    trees = random_trees(5, seed=2)
    store.fill(engine.prepare(tiny_model()), trees, 10_000)
    (new,) = set(shards_of(tmp_path)) - {old}
    other = Entry(tmp_path, OLD, {})
    assert not catalogue.prune(tmp_path, 0, own=entry).removed, (
        "another process may use the old one"
    )
    other.close()
    assert [path for path, _ in catalogue.prune(tmp_path, 0, own=entry).removed] == [old]
    assert new.exists()
    assert len(store.logps(trees, CPU).values_T)
    assert catalogue.entries(tmp_path)[0].in_use


def test_what_was_used_is_kept_before_what_was_only_written_later(tmp_path: Path) -> None:
    one, two = (fill_entry(tmp_path, name, age, 0) for name, age in ((OLD, 400), (OTHER, 300)))
    store = store_in(tmp_path, OLD)
    unwilling: Any = Unwilling(engine.prepare(tiny_model()))
    store.fill(unwilling, random_trees(5), 10_000)
    del store
    catalogue.prune(tmp_path, one.stat().st_size)
    assert (one.exists(), two.exists()) == (True, False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("123", 123), ("20GB", 20e9), ("1.5 tb", 1.5e12), ("4KiB", 4096), ("none", math.inf),
     ("0", 0), ("", catalogue.MAX_BYTES)],
)  # fmt: skip
def test_size_limits(given: str, expected: float) -> None:
    assert catalogue.size_limit({catalogue.SIZE_VARIABLE: given}) == expected


@pytest.mark.parametrize("given", ["much", "-1GB", "1.2.3", "5 apples"])
def test_what_is_no_size_is_an_error(given: str) -> None:
    with pytest.raises(RecipeError, match="PENCHANT_REFERENCE_CACHE_SIZE"):
        catalogue.size_limit({catalogue.SIZE_VARIABLE: given})


def test_rows_without_a_scored_token(tmp_path: Path) -> None:
    trees = [tree_of(3, "00", "0"), tree_of(4, 2, "000")]
    prepared = engine.prepare(tiny_model())
    store_in(tmp_path).fill(prepared, trees, 1000)
    store = store_in(tmp_path)
    unwilling: Any = Unwilling(prepared)
    store.fill(unwilling, trees, 1000)
    assert store.logps(trees, CPU).lengths_R.tolist() == [0, 0, 2, 0]
