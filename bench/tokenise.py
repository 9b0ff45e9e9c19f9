"""Pairs per second from a file to token trees, with one, two and more processes.

    python bench/tokenise.py DATA_FOLDER [PAIRS] [REPETITIONS]

DATA_FOLDER holds tokenizer_gpt2 and ultrafeedback_binarized_sample.jsonl.gz. Its rows are repeated
with distinct prompts; marks and the cache are off, reading the file is part of it. The ways take
turns, and the median counts. Two cores: more are left aside where the system has them. A run that
had less than 1.8 of them is marked as unusable: other programs were running. Prints a table and
writes bench/results/tokenise.json.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from penchant import data
from penchant.data.render import chat_template
from penchant.models.load import load_tokenizer
from penchant.models.new import ready_tokenizer

RESULTS = Path(__file__).parent / "results" / "tokenise.json"
CORES = 2
ENOUGH = 1.8
"""Cores that a run must have had to be of use."""
GOAL = 1500.0
"""[pairs/s] on two cores."""
WAYS: dict[str, dict[str, Any]] = {
    "1 process, 1 thread": {"num_proc": 1, "threads": False},
    "1 process, threads of the tokenizer": {"num_proc": 1, "threads": True},
    "2 processes": {"num_proc": 2, "threads": False},
    "3 processes": {"num_proc": 3, "threads": False},
}


def main(folder: Path, pairs: int, repetitions: int) -> None:
    """All ways in turn, several times."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    tokenizer = ready_tokenizer(
        load_tokenizer(str(folder / "tokenizer_gpt2")), chat_template("chatml")
    )
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "rows.jsonl"
        write_rows(folder / "ultrafeedback_binarized_sample.jsonl.gz", path, pairs)
        data.build_trees(list(data.load(path))[:500], tokenizer)
        for _ in range(repetitions):
            for name, way in WAYS.items():
                runs[name].append(measure(path, tokenizer, **way))
    found = {name: summarise(listed) for name, listed in runs.items()}
    for name, one in found.items():
        print(name.ljust(38), "  ".join(f"{key} {value}" for key, value in one.items()))
    result = {"pairs": pairs, "repetitions": repetitions, "cores": CORES, "goal": GOAL, **found}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def write_rows(source: Path, path: Path, pairs: int) -> None:
    """The sample's rows over and over, each with a prompt of its own."""
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(pairs):
            row = json.loads(json.dumps(rows[number % len(rows)]))
            row["prompt"][0]["content"] = f"Case {number}: {row['prompt'][0]['content']}"
            stream.write(json.dumps(row) + "\n")


def measure(path: Path, tokenizer: Any, num_proc: int, threads: bool) -> dict[str, float]:
    """One run: seconds, and how much of the processor it had."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads else "false"
    started, used = time.perf_counter(), cpu_seconds()
    trees, report = data.build_trees(data.read_comparisons(path), tokenizer, num_proc=num_proc)
    wall, cpu = time.perf_counter() - started, cpu_seconds() - used
    assert len(trees) == report.rows_used > 0
    return {"wall": wall, "cpu": cpu, "pairs": report.rows_in, "cores": cpu / wall}


def cpu_seconds() -> float:
    """Of this process and of those that have ended."""
    return sum(os.times()[:4])


def summarise(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the runs; of the usable ones where there are any."""
    usable = [run for run in runs if run["cores"] >= ENOUGH]
    rate = statistics.median(run["pairs"] / run["wall"] for run in usable or runs)
    per_cpu = statistics.median(run["pairs"] / run["cpu"] for run in runs)
    return {
        "pairs_per_second": round(rate),
        "pairs_per_cpu_second": round(per_cpu),
        "cores_used": round(statistics.median(run["cores"] for run in runs), 2),
        "usable_runs": len(usable),
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    given = [int(number) for number in sys.argv[2:]]
    main(Path(sys.argv[1]), *(given + [6000, 5][len(given) :]))
