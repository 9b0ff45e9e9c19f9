"""A reward model by two real processes: the same weights of tasks, the same model as by one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.commands.reward_world import reward_recipe, write_tasks
from tests.train.test_several_processes import assert_same_run
from tests.two_processes import launched


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and a run of one process in it."""
    folder = write_tasks(tmp_path_factory.mktemp("made"))
    done = launch(folder, processes=1)
    assert done.returncode == 0, done.stderr
    return folder


def launch(world: Path, *, processes: int, **changes: Any) -> subprocess.CompletedProcess[str]:
    """`penchant reward` with MORE, under torchrun or as it is."""
    settings = {
        "data.eval": str(world / "eval.jsonl"),
        "task_weights": {"name": "more", "alpha": 0.6},
        "training.token_budget": 200,
        "training.save_steps": 2,
        "training.save_total_limit": 9,
    }
    given = settings | reward_recipe(world, **changes)
    keys = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return launched("-m", "penchant", "reward", *keys, processes=processes)


@pytest.mark.parametrize(
    ("distribution", "budget"),
    [
        ("replicate", 200),
        pytest.param("replicate", 10_000, marks=pytest.mark.slow),
        pytest.param("shard", 200, marks=pytest.mark.slow),
        pytest.param("shard", 10_000, marks=pytest.mark.slow),
    ],
)
def test_two_processes_make_the_model_that_one_makes(
    made: Path, distribution: str, budget: int
) -> None:
    """With a large budget each has one micro-batch, and forward runs once."""
    output = made / f"{distribution}-{budget}"
    settings = {
        "output_dir": str(output),
        "training__distribution": distribution,
        "training__num_processes": 2,
        "training__token_budget": budget,
    }
    done = launch(made, processes=2, **settings)
    assert done.returncode == 0, done.stderr
    assert_same_run(made / "run", output)
    summary = json.loads((output / "summary.json").read_text())
    ahead = summary["steps_with_a_second_forward_pass"]
    assert ahead == (0 if budget == 10_000 else summary["num_steps"])
    if (distribution, budget) == ("shard", 200):
        # Cut off after a checkpoint: the running means come back in both processes.
        (output / "summary.json").unlink()
        (output / "model.safetensors").unlink()
        shutil.rmtree(output / "checkpoint-6")
        shutil.rmtree(output / "checkpoint-4")
        done = launch(made, processes=2, **settings)
        assert "resumed from checkpoint-2" in done.stdout, done.stderr
        assert_same_run(made / "run", output)
