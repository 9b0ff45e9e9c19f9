"""Trees made by several processes: the same ones, a death that is said, memory that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penchant import data, weights
from penchant.data import parallel
from penchant.data.making import Maker
from penchant.data.plan import BuildSettings, PairSettings, Planned, plan_rows
from penchant.data.store import Trees, TreeWriter, map_trees, pack
from penchant.data.trees import TokenSettings
from penchant.errors import DataError, WorkerError
from penchant.types import PairMarks, TokenTree
from tests.data.samples import ask, bpe_tokenizer, preference_row, say, write_rows

CHATML = {"chat_template": "chatml"}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BATCH", 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Good rows, long ones, and some of every way to be set aside on the way to tokens."""
    rows: list[Any] = [preference_row(number) for number in range(30)]
    rows += [preference_row(n, chosen=[say("egg " * 90)]) for n in range(30, 33)]
    rows += [preference_row(33, rejected=[say("")]), preference_row(34, chosen=[say("No idea.")])]
    rows += [preference_row(35, prompt=[ask("how long? " * 80)]), "{broken"]
    rows += [preference_row(3), preference_row(36, prompt=[ask("<s> is special")])]
    return write_rows(tmp_path / "rows.jsonl", rows)


def build(rows: Any, **settings: Any) -> tuple[Any, Any]:
    given = {"max_length": 48, "mark": weights.mark, **CHATML, **settings}
    return data.build_trees(rows, bpe_tokenizer(), **given)


@pytest.mark.parametrize("num_proc", [2, 3])
def test_any_number_of_processes_gives_the_same(path: Path, num_proc: int) -> None:
    trees, report = build(data.load(path), num_proc=1)
    assert report.set_aside and report.responses_cut and trees[0].marks
    made, found = build(data.load(path), num_proc=num_proc)
    assert list(made) == list(trees)
    assert found == report and found.gathered == report.gathered


def test_fresh_interpreters_give_the_same(path: Path) -> None:
    rows = plan_rows(list(data.load(path)), BuildSettings(), PairSettings(), data.DataReport())
    maker = Maker(bpe_tokenizer(), TokenSettings(max_length=48, **CHATML))  # type: ignore[arg-type]
    here = list(parallel.make_batches(maker, rows, 1))
    there = list(parallel.make_batches(maker, rows, 2, "spawn"))
    assert [batch.made for batch in there] == [batch.made for batch in here]


def test_a_stream_gives_the_same_as_rows_in_memory(path: Path) -> None:
    for settings in ({}, {"max_pairs_per_prompt": 1}, {"score_transform": "zscore"}):
        trees, report = build(data.load(path), **settings)
        made, found = build(data.read_comparisons(path), **settings)
        assert list(made) == list(trees)
        assert found == report
    assert any(one["excerpt"] for one in report.examples["empty_response"])


def test_excerpts_of_rows_without_pairs_come_from_the_second_pass(path: Path) -> None:
    _, report = build(data.read_comparisons(path), max_pairs_per_prompt=1)
    _, held = build(data.load(path), max_pairs_per_prompt=1)
    assert "egg" in report.examples["over_pair_cap"][0]["excerpt"]
    assert report.examples == held.examples


def test_a_file_that_changes_while_it_is_read_is_refused(path: Path) -> None:
    stream = data.read_comparisons(path)
    first = type(stream).__iter__

    class Changing(type(stream)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            yield from first(self)
            write_rows(path, [preference_row(number + 7) for number in range(30)])

    with pytest.raises(DataError, match="changed while it was read"):
        build(Changing(stream.sources), cache=True)


def test_the_first_error_is_raised_from_a_process(path: Path) -> None:
    with pytest.raises(DataError, match=r"rows:31: .*max_length is 48"):
        build(data.load(path), num_proc=2, overlong="stop")


def die(chosen: Any, rejected: Any) -> PairMarks:
    """In place of what the system does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


def test_a_dead_process_ends_the_run(path: Path) -> None:
    with pytest.raises(WorkerError, match="one of 2 processes that tokenise died"):
        build(data.load(path), num_proc=2, mark=die)


def test_processes_end_with_the_one_that_started_them(path: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from penchant import data
from tests.data.samples import bpe_tokenizer
def note(chosen, rejected):
    with open({str(tmp_path / "pids")!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep(600)
if __name__ == "__main__":
    data.build_trees(data.load({str(path)!r}), bpe_tokenizer(), chat_template="chatml",
                     mark=note, num_proc=2)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        pids = tmp_path / "pids"
        while not pids.exists() or not pids.read_text().endswith("\n"):
            assert parent.poll() is None
        parent.kill()
    for pid in {int(line) for line in pids.read_text().split()}:
        while _runs(pid):
            pass


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "num_cores", lambda: 6)
    assert parallel.num_processes(None, parallel.SMALL - 1) == 1
    assert parallel.num_processes(None, parallel.SMALL) == 6
    assert parallel.num_processes(3, 1) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert parallel.num_processes(None, parallel.SMALL) == 3
    monkeypatch.setattr(parallel, "num_cores", lambda: 500)
    assert parallel.num_processes(None, parallel.SMALL) == parallel.MOST
    with pytest.raises(DataError, match="num_proc is 0"):
        data.build_trees([], bpe_tokenizer(), num_proc=0)


TREES = [
    TokenTree(row_id="a:1", prompt_ids=(1, 2), response_ids=((3,),), response_masks=((True,),)),
    TokenTree(
        row_id="ü\ud800:2",
        prompt_ids=(250_000,),
        response_ids=((4, 5), (6,), (7, 8, 9)),
        response_masks=((True, False), (True,), (False, True, True)),
        pairs_P2=((2, 0), (0, 1)),
        scores_R=(1.5, float("-inf"), -0.25),
        soft_labels_P=(0.9, 0.1),
        marks=(
            PairMarks((True, False, True), (False, True)),
            PairMarks((False, False), (True,)),
        ),
    ),
    TokenTree(row_id="", prompt_ids=(), response_ids=(), response_masks=(), scores_R=(), marks=()),
    TokenTree(
        row_id="b:3",
        prompt_ids=(9,),
        response_ids=((1,), (2, 3)),
        response_masks=((True,), (True, True)),
        pairs_P2=((0, 1),),
    ),
]


def test_trees_come_back_from_flat_arrays(tmp_path: Path) -> None:
    with TreeWriter(tmp_path / "trees") as writer:
        for batch in (TREES[:1], [], TREES[1:]):
            writer.append(pack(batch))
    for trees in (Trees(pack(TREES)), map_trees(tmp_path / "trees", writer.manifest)):
        assert trees == TREES and trees == TREES and trees != TREES[:3]
        assert trees[-1] == TREES[-1] and trees[1:3] == TREES[1:3]
        with pytest.raises(IndexError):
            trees[4]


def test_counts_without_making_trees() -> None:
    trees = Trees(pack([TREES[0], TREES[1], TREES[3]]))
    assert trees.num_pairs_N.tolist() == [0, 2, 1]
    assert trees.num_responses_N.tolist() == [1, 3, 2]
    assert trees.num_tokens_N.tolist() == [tree.num_tokens for tree in trees] == [3, 7, 4]
    assert trees.longest_N.tolist() == [3, 4, 3]
    none = Trees(pack([]))
    assert len(none) == 0 and none == [] and not len(none.longest_N)


MEASURE = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from penchant import data
from tests.data.samples import bpe_tokenizer
trees, report = data.build_trees(data.read_comparisons(sys.argv[2]), bpe_tokenizer(),
                                 chat_template="chatml", num_proc=1)
assert len(trees) == int(sys.argv[3]), report.set_aside
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_far_less_than_the_file(tmp_path: Path) -> None:
    peaks, sizes = [], []
    text = "Put the egg into boiling water for eight minutes, then cool it. " * 100
    for rows in (1000, 4000):
        path = tmp_path / f"{rows}.jsonl"
        chosen = [say(text)]
        write_rows(path, [preference_row(number, chosen=chosen) for number in range(rows)])
        sizes.append(path.stat().st_size)
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", MEASURE, root, str(path), str(rows)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout))
    # A row is 6.5 kB of text here; held as tuples its tokens would be some 10 kB.
    assert peaks[1] - peaks[0] < 0.4 * (sizes[1] - sizes[0])


def test_planned_rows_can_be_sent(path: Path) -> None:
    import pickle

    rows = plan_rows(list(data.load(path)), BuildSettings(), PairSettings(), data.DataReport())
    assert all(isinstance(one, Planned) for one in rows)
    assert pickle.loads(pickle.dumps(rows)) == rows
