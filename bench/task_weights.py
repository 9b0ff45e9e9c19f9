"""What weighting the tasks by MORE costs: steps of one micro-batch, weighted and not, in turns.

    python bench/task_weights.py [--size a] [--tasks 5] [--pairs 2] [--rounds 7] [--threads 2]

A reward model with random weights of the size named (see step_cases.py), `pairs` pairs of each of
`tasks` tasks per step, float32. Two figures: the share of a weighted step that is spent on head
gradients, solver and cosines, measured inside the step; and the ratio of whole steps, which at such
shares is mostly noise. Prints both and writes bench/results/task_weights.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from score import make_model
from step_cases import SIZES
from step_workload import END, SEED

from penchant import engine, objectives
from penchant.train.config import TaskWeightsConfig
from penchant.train.memory_use import keep_freed
from penchant.train.reward_step import RewardStep
from penchant.train.reward_tasks import Tasks
from penchant.types import TokenTree

RESULTS = Path(__file__).parent / "results" / "task_weights.json"
LIMIT = 0.02
"""Of a step with one micro-batch: what weighting may take."""
PROMPT, RESPONSE = 180, 280
"""Tokens, as in the other benchmarks."""


class Watched:
    """Counts the seconds that a step spends in some of its methods."""

    def __init__(self, step: RewardStep, names: Sequence[str]) -> None:
        self.seconds = 0.0
        for name in names:
            object.__setattr__(step, name, self._timed(getattr(step, name)))

    def _timed(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return call


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; 0 where the share is within the limit."""
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    keep_freed(torch.device("cpu"))
    trees = make_trees(asked)
    size = argparse.Namespace(prompt_tokens=PROMPT, response_tokens=RESPONSE, dtype="float32")
    prepared = engine.prepare(make_model(SIZES[asked.size], size))
    steps = {name: make_step(prepared, asked.tasks, name) for name in ("uniform", "more")}
    watched = Watched(steps["more"], ("_head_sums", "_weigh"))
    runs: dict[str, list[float]] = {name: [] for name in steps}
    shares, cores = [], []
    for turn in range(asked.rounds + 1):
        for name in sorted(steps, reverse=bool(turn % 2)):
            prepared.model.zero_grad(set_to_none=True)
            watched.seconds = 0.0
            before, started = os.times(), time.perf_counter()
            steps[name].train(trees)
            seconds, after = time.perf_counter() - started, os.times()
            if turn:  # the first round warms up
                runs[name].append(seconds)
                cores.append((after.user + after.system - before.user - before.system) / seconds)
                shares += [watched.seconds / seconds] if name == "more" else []
    assert steps["more"].num_ahead == 0, "more than one micro-batch"
    found = {
        "tasks": asked.tasks,
        "pairs_per_task": asked.pairs,
        "size": asked.size,
        "threads": asked.threads,
        "cores": round(statistics.median(cores), 2),
        "seconds": {name: round(statistics.median(one), 4) for name, one in runs.items()},
        "ratio_of_steps": round(
            statistics.median(runs["more"]) / statistics.median(runs["uniform"]), 4
        ),
        "share_of_step": round(statistics.median(shares), 5),
        "limit": LIMIT,
    }
    print(json.dumps(found, indent=1))
    asked.results.write_text(json.dumps(found, indent=1) + "\n")
    return int(found["share_of_step"] > LIMIT)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="a")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=2, help="of each task in a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def make_trees(asked: argparse.Namespace) -> list[TokenTree]:
    """Pairs of random tokens, task after task."""
    generator = torch.Generator().manual_seed(SEED)

    def words(count: int) -> tuple[int, ...]:
        most = SIZES[asked.size].vocabulary
        return tuple(torch.randint(2, most, (count,), generator=generator).tolist())

    trees = []
    for task in range(asked.tasks):
        for number in range(asked.pairs):
            ids = tuple((*words(RESPONSE - 1), END) for _ in range(2))
            trees.append(
                TokenTree(
                    row_id=f"task{task}:{number + 1}",
                    prompt_ids=words(PROMPT),
                    response_ids=ids,
                    response_masks=tuple((True,) * len(one) for one in ids),
                    pairs_P2=((0, 1),),
                )
            )
    return trees


def make_step(prepared: engine.Engine, num_tasks: int, weights: str) -> RewardStep:
    """A step over all tasks in one micro-batch."""
    names = tuple(f"task{task}" for task in range(num_tasks))
    tasks = Tasks(names=names, eval_names=names, weights=TaskWeightsConfig(name=weights))
    return RewardStep(prepared, objectives.load("bradley-terry"), tasks, 10**6)


if __name__ == "__main__":
    sys.exit(main())
