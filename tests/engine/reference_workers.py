"""Processes that fill one store at the same time and are killed at random; run as a program.

They are forked from one that has the model, so that a hundred of them take seconds. It prints what
happened as JSON; anything that must not happen is an AssertionError.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from penchant import engine
from penchant.engine.reference import catalogue
from penchant.engine.reference.entry import Entry
from penchant.engine.reference.shards import KEY
from penchant.engine.reference_store import ReferenceStore, content_key
from penchant.types import TokenTree
from tests.tiny import random_trees, tiny_model

CPU = torch.device("cpu")
NAME = "e" * 32
BUDGET = 150
ROUND_SECONDS = 0.02
PATIENCE = 120.0
"""[s] until processes that should have finished count as hung."""


class Counted:
    """An engine that notes, in a file of its process, which rows it computes."""

    def __init__(self, inner: engine.Engine, root: Path) -> None:
        self._inner, self._log = inner, root / f"{os.getpid()}.log"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def logps(self, trees: Sequence[TokenTree]) -> Any:
        found = self._inner.logps(trees)
        with self._log.open("ab") as log:
            log.write(b"".join(content_key(tree) for tree in trees))
        return found


def start(root: Path, prepared: engine.Engine, trees: Sequence[TokenTree]) -> int:
    """A process that fills the store and ends; its number."""
    child = os.fork()
    if child:
        return child
    try:
        counted: Any = Counted(prepared, root)
        store = ReferenceStore(Entry(root, NAME, {}), round_seconds=ROUND_SECONDS)
        store.fill(counted, trees, BUDGET)
        assert len(store.logps(trees, CPU).lengths_R) == 2 * len(trees)
        os._exit(0)
    except BaseException as error:
        print(f"process {os.getpid()}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def wait_for(children: Sequence[int]) -> None:
    """All end by themselves, and well."""
    deadline = time.monotonic() + PATIENCE
    for child in children:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, f"a process ended with status {status}"
                break
            assert time.monotonic() < deadline, "hung"
            time.sleep(0.002)


def kill_some(
    root: Path, prepared: engine.Engine, trees: Sequence[TokenTree], kills: int, rng: random.Random
) -> Counter[str]:
    """Keeps two processes on the store and kills one after the other, until it is full.

    At last, or without a kill, two fill it and end by themselves.
    """
    counts: Counter[str] = Counter()
    children: list[int] = []
    while True:
        while len(children) < 2:
            children.append(start(root, prepared, rng.sample(trees, len(trees))))
        if counts["kills"] == kills:
            break
        victim = rng.choice(children)
        in_write = rng.random() < 0.4 and wait_for_a_write(root, victim)
        if not in_write:
            time.sleep(rng.expovariate(1 / 0.03))
        os.kill(victim, signal.SIGKILL)
        status = os.waitpid(victim, 0)[1]
        children.remove(victim)
        if status == 0:  # the store is full: it had ended before
            counts["ended"] += 1
            break
        assert status == signal.SIGKILL
        counts["kills"] += 1
        counts["half-written"] += bool(list((root / NAME).glob(f"{victim:x}-*.tmp")))
        counts["claims left"] += bool(list((root / NAME / "claims").glob(f"{victim:x}-*.claim")))
    wait_for(children)
    return counts


def wait_for_a_write(root: Path, victim: int) -> bool:
    """Until a process is inside a write, for a short time."""
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        if any((root / NAME).glob(f"{victim:x}-*.tmp")):
            return True
    return False


def check(
    root: Path, prepared: engine.Engine, trees: Sequence[TokenTree], expected: torch.Tensor
) -> dict[str, int]:
    """After the last fill: every row once, right, and nothing else lies there."""
    wait_for([start(root, prepared, trees)])
    folder = root / NAME
    shards = sorted(folder.glob("*.safetensors"))
    stored = [row.tobytes() for path in shards for row in load_file(path)["keys"].numpy()]
    wanted = {content_key(tree) for tree in trees}
    assert set(stored) == wanted
    assert len(stored) == len(wanted), f"{len(stored) - len(wanted)} rows were stored twice"
    assert [fault for fault in catalogue.faults(folder) if fault.path.name != "about.json"] == []
    assert not list(folder.glob("*.tmp")), "remains"
    assert [path.name for path in (folder / "claims").iterdir()] == ["lock"]
    found = ReferenceStore(Entry(root, NAME, {})).logps(trees, CPU)
    torch.testing.assert_close(found.values_T, expected, rtol=1e-5, atol=1e-6)
    logs = [path.stat().st_size // KEY.itemsize for path in root.glob("*.log")]
    return {
        "shards": len(shards), "rows": len(wanted), "computed": sum(logs), "workers": len(logs),
    }  # fmt: skip


def main(root: Path, kills: int, num_rows: int) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    rng = random.Random(0)
    prepared = engine.prepare(tiny_model())
    trees = random_trees(num_rows)
    whole = ReferenceStore()
    whole.fill(prepared, trees, BUDGET)
    expected = whole.logps(trees, CPU).values_T
    total: Counter[str] = Counter()
    start_time = time.monotonic()
    while True:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        counts = kill_some(root, prepared, trees, kills - total["kills"], rng)
        counts.update(check(root, prepared, trees, expected))
        counts["stores"] = 1
        total += counts
        if not counts["kills"]:
            assert counts["computed"] == counts["rows"], "work was done twice"
        if total["kills"] >= kills:
            break
    total["seconds"] = round(time.monotonic() - start_time)
    print(json.dumps(total))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
