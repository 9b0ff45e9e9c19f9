"""Free memory within the limits of control groups, and peaks of parts of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penchant.train import memory_use

CPU = torch.device("cpu")
MIB = 2**20


def group(folder: Path, version: int, limit: str, usage: int, inactive: int) -> None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {inactive}\n")


def test_every_group_above_a_process_counts(tmp_path: Path) -> None:
    root, membership = tmp_path / "groups", tmp_path / "cgroup"
    membership.write_text("0::/batch/job\n")
    group(root / "batch" / "job", 2, "max", 300 * MIB, 0)
    group(root / "batch", 2, str(1000 * MIB), 700 * MIB, 50 * MIB)
    assert memory_use.control_group_room(membership, root) == [350 * MIB]
    group(root / "batch" / "job", 2, str(400 * MIB), 300 * MIB, 0)
    assert memory_use.control_group_room(membership, root) == [100 * MIB, 350 * MIB]


def test_version_1_and_the_root_of_a_container(tmp_path: Path) -> None:
    root, membership = tmp_path / "groups", tmp_path / "cgroup"
    membership.write_text("9:cpu:/elsewhere\n4:memory:/docker/abc\n0::/\n")
    group(root / "memory", 1, str(500 * MIB), 600 * MIB, 0)
    assert memory_use.control_group_room(membership, root) == [0]
    group(root / "memory", 1, str(2**63 - 4096), 600 * MIB, 0)
    assert memory_use.control_group_room(membership, root) == []
    assert memory_use.control_group_room(tmp_path / "none", root) == []


def test_a_host_is_shared_by_its_processes() -> None:
    alone = memory_use.free_bytes(CPU, {})
    of_four = memory_use.free_bytes(CPU, {"LOCAL_WORLD_SIZE": "4"})
    assert alone > 100 * MIB
    assert alone / 4 == pytest.approx(of_four, rel=0.5)


@pytest.mark.skipif(not memory_use.can_measure(CPU), reason="peaks cannot be started anew here")
def test_the_peak_is_that_of_a_part() -> None:
    memory_use.release()
    memory_use.restart_peak(CPU)
    before = memory_use.peak_bytes(CPU)
    held = torch.ones(64 * MIB)
    del held
    assert memory_use.peak_bytes(CPU) - before > 240 * MIB
    memory_use.restart_peak(CPU)
    assert memory_use.peak_bytes(CPU) - before < 100 * MIB


def test_caches_are_bounded_unless_somebody_chose_otherwise() -> None:
    environment = {"LRU_CACHE_CAPACITY": "7"}
    memory_use.bound_caches(environment)
    assert environment == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}


GROWTH = """
import torch
from penchant.train import memory_use

memory_use.bound_caches()
linear = torch.nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)


def run(sizes):
    for size in sizes:
        linear(torch.ones(size, 512, dtype=torch.bfloat16)).sum().backward()
        linear.weight.grad = None
    memory_use.release()
    memory_use.restart_peak(torch.device("cpu"))
    return memory_use.peak_bytes(torch.device("cpu"))


first = run(range(1000, 1100))
print((run(range(1100, 1400)) - first) / 2**20)
"""


@pytest.mark.skipif(not memory_use.can_measure(CPU), reason="peaks cannot be started anew here")
def test_batches_of_ever_new_sizes_do_not_take_ever_more_memory() -> None:
    """In a process of its own: the library reads its settings once. Unbounded it is 300 MiB."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True)
    assert float(done.stdout) < 60, done.stderr


FAULTS = """
import os, resource, sys
import torch
from penchant.train import memory_use

if sys.argv[1] == "kept":
    memory_use.keep_freed(torch.device("cpu"), {})


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(faults())
memory_use.release()
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


@pytest.mark.skipif(not memory_use.can_measure(CPU), reason="not Linux")
def test_freed_memory_is_kept_for_the_next_step_and_given_back_on_request() -> None:
    found = {}
    for how in ("as it comes", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        found[how] = [int(line) for line in done.stdout.split()]
    pages, resident = zip(found["as it comes"], found["kept"], strict=True)
    assert pages[1] < pages[0] / 10
    assert resident[1] - resident[0] < 32 * MIB


def test_who_set_the_allocator_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_use.ctypes, "CDLL", lambda _: pytest.fail("it was set all the same"))
    memory_use.keep_freed(CPU, {"MALLOC_TRIM_THRESHOLD_": "1"})
    memory_use.keep_freed(torch.device("cuda"), {})
