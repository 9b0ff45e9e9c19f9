"""SIGKILL at random moments, some of them inside a save: the run ends in the same bits."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.train import checkpoint, manifest
from tests.commands.world import linked, recipe, write_world
from tests.train import processes

RESUMED = re.compile(r"resumed from checkpoint-\d+ at step (\d+) of \d+")
LORA = {"model__adapter": {"r": 4, "alpha": 8, "dropout": 0.3}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("made"))


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return linked(made, tmp_path)


def settings(world: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data__eval": str(world / "eval.jsonl"),
        "training__batch_size": 4,
        "training__learning_rate": 3e-3,
        "training__eval_steps": 5,
        "training__save_steps": 2,
        **changes,
    }


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is half-written; one that is being removed does not count."""
    last = newest(run)
    names = [path.name for path in run.glob(".checkpoint-*.tmp")]
    return any(int(name.split("-")[1].removesuffix(".tmp")) > last for name in names)


def newest(run: Path) -> int:
    return max((int(p.name.rsplit("-", 1)[1]) for p in checkpoint.checkpoints(run)), default=0)


def kill(process: Any, run: Path, rng: random.Random, at_step: int, in_save: bool) -> bool:
    """Kills a run some time after a step; True where that was inside a save."""
    known = newest(run)
    assert processes.wait_until(process, lambda: newest(run) >= max(at_step, known + 1)), (
        f"ended before step {at_step}: {process.communicate()[1]}"
    )
    if in_save:
        assert processes.wait_until(process, lambda: is_saving(run), pause=0)
    else:
        time.sleep(rng.uniform(0, 0.1))
    process.kill()
    assert process.wait(processes.PATIENCE) == -signal.SIGKILL
    return is_saving(run)


def run_with_kills(
    world: Path, *, num_kills: int, num_in_save: int, num_steps: int, **changes: Any
) -> dict[str, Any]:
    """Goes through a run that is killed again and again, up to its end."""
    rng = random.Random(20)
    run = world / "killed"
    wanted = [True] * num_in_save + [False] * (num_kills - num_in_save)
    rng.shuffle(wanted)
    hits, resumed_at = 0, []
    for place, in_save in enumerate(wanted):
        process = processes.start(world, output_dir=str(run), **changes)
        step = int(num_steps * (place + rng.random()) / (num_kills + 2))
        hit = kill(process, run, rng, step, in_save)
        hits += hit
        if in_save and not hit and len(wanted) < num_kills + 2:
            wanted.append(True)  # the save was over before the kill came: once more
        resumed_at += [int(found[1]) for found in RESUMED.finditer(processes.finish(process)[1])]
    code, out, err = processes.finish(processes.start(world, output_dir=str(run), **changes))
    assert code == 0, err
    resumed_at += [int(found[1]) for found in RESUMED.finditer(out)]
    return {"num_kills": len(wanted), "in_save": hits, "resumed_at": resumed_at}


def compare(world: Path, weights: str, num_steps: int) -> None:
    """The killed run against the one that nothing befell, byte by byte."""
    whole, killed = world / "run", world / "killed"
    for name in (weights, "metrics.jsonl", "tokenizer.json", "data_report.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    last = f"checkpoint-{num_steps}"
    assert manifest.find_fault(killed / last) is None
    # Weights, optimiser, schedule and random states, by their hashes. PEFT's config is left out:
    # it lists a set of names in an order that differs from process to process.
    hashes = [manifest.read(run / last) for run in (killed, whole)]
    for listed in hashes:
        listed.pop("adapter_config.json", None)
    assert hashes[0] == hashes[1] and "optimizer.pt" in hashes[0]
    kept = [path.name for path in checkpoint.checkpoints(killed)]
    assert kept == [path.name for path in checkpoint.checkpoints(whole)]
    strange = [p.name for p in killed.iterdir() if p.name.startswith(".") or "checkpoint" in p.name]
    assert sorted(strange) == sorted(kept)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, killed)]
    for summary in summaries:
        del summary["seconds"], summary["resources"]
        # One computed the reference, the other found it.
        rows = [summary.pop(f"reference_rows_{what}") for what in ("computed", "reused")]
        assert sum(rows) == 30
    assert summaries[0] == summaries[1]


def test_two_kills_one_inside_a_save_change_nothing(world: Path) -> None:
    changes = settings(world, training__num_train_epochs=10, **LORA)  # 60 steps
    penchant.run("train", None, recipe(world, **changes))
    found = run_with_kills(world, num_kills=2, num_in_save=1, num_steps=60, **changes)
    assert found["in_save"] >= 1
    assert len(found["resumed_at"]) == found["num_kills"] >= 2 and min(found["resumed_at"]) > 0
    compare(world, "adapter_model.safetensors", 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_ten_kills_three_inside_saves_change_nothing(world: Path, kind: str) -> None:
    steps = 300
    lora = LORA if kind == "lora" else {}
    changes = settings(world, training__num_train_epochs=50, **lora)
    code, _, err = processes.finish(processes.start(world, **changes))
    assert code == 0, err
    found = run_with_kills(world, num_kills=10, num_in_save=5, num_steps=steps, **changes)
    print(found)
    assert found["in_save"] >= 3
    assert len(found["resumed_at"]) == found["num_kills"] >= 10 and min(found["resumed_at"]) > 0
    assert found["resumed_at"] == sorted(set(found["resumed_at"]))
    compare(world, f"{'adapter_' if lora else ''}model.safetensors", steps)
