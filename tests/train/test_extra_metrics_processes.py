"""Entropy and token KL in two real processes, replicated and with split weights (FSDP2)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant import engine, objectives
from penchant.engine import sharding
from penchant.engine.processes import ALONE, Processes
from penchant.engine.reference_store import ReferenceStore
from penchant.train.step import Step
from tests.commands.world import read_metrics, write_world
from tests.engine.test_packed_training import vivid_adapter
from tests.tiny import assert_same_gradients, random_trees, vivid_model
from tests.train.dropped_in import dropped_in
from tests.train.test_several_processes import assert_same_run, launch
from tests.two_processes import results_of, take_part, whole_gradients

EXTRA = ("entropy", "token_kl")
KINDS = ["full", "head-adapter", "checkpointing"]
NAMES = ["dpo", "entropic", "entropic-step"]
BUDGETS = {"one-batch": 10**6, "many": 45}
"""With one batch per process, and with so small ones that their numbers of tiles differ."""


def build(kind: str) -> Any:
    model = vivid_model("llama")
    if kind == "head-adapter":
        return vivid_adapter(model, torch.float32, target_modules=["q_proj", "lm_head"])
    if kind == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return model


def run_step(
    name: str, kind: str, budget: int, processes: Processes, layout: Any = "packed"
) -> dict[str, Any]:
    """Metrics and whole gradients of one step, between two evaluations, on every process."""
    trees = random_trees(5, num_responses=3)
    model, other = build(kind), vivid_model("qwen3").requires_grad_(False)
    if processes.sharded:
        cpu = torch.device("cpu")
        model, other = (sharding.shard(one, cpu, torch.float32) for one in (model, other))
    reference = engine.prepare(other, layout)
    store = ReferenceStore()
    store.fill(reference, trees, budget, processes=processes)
    objective = objectives.load(name, beta=0.3)
    step = Step(
        engine.prepare(model, layout), objective, store, budget, processes, EXTRA, reference
    )
    before = step.evaluate(trees).means()
    means = step.train(trees).means()
    found = whole_gradients(model)
    after = step.evaluate(trees).means()
    return {"before": before, "means": means, "after": after, "gradients": found}


def cases() -> Iterator[tuple[str, str, str, bool]]:
    for name in NAMES:
        for kind in KINDS:
            for budget in BUDGETS:
                for sharded in (False, True):
                    yield name, kind, budget, sharded


def work(folder: Path) -> dict[Any, Any]:
    """What each of the two processes does."""
    with tempfile.TemporaryDirectory() as own, dropped_in(Path(own)):
        results: dict[Any, Any] = {
            (name, kind, budget, sharded): run_step(
                name, kind, BUDGETS[budget], Processes.current(sharded=sharded)
            )
            for name, kind, budget, sharded in cases()
        }
        sharded = Processes.current(sharded=True)
        for name in NAMES:
            results[name, "plain"] = run_step(name, "full", 45, sharded, "plain")
    return results


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What the two processes came to, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    return results_of("tests.train.test_extra_metrics_processes", folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What one process comes to on plain rows."""
    with dropped_in(tmp_path_factory.mktemp("objectives")):
        return {
            (name, kind): run_step(name, kind, 10**6, ALONE, "plain")
            for name in NAMES
            for kind in KINDS
        }


@pytest.mark.parametrize(("name", "kind", "budget", "sharded"), list(cases()))
def test_two_processes_come_to_what_one_does(
    found: Any, expected: Any, name: str, kind: str, budget: str, sharded: bool
) -> None:
    wanted = expected[name, kind]
    for rank in (0, 1):
        got = found[rank][name, kind, budget, sharded]
        for when in ("before", "means", "after"):
            assert set(EXTRA) <= set(got[when])
            assert got[when] == pytest.approx(wanted[when], rel=1e-5, abs=1e-6), when
        assert_same_gradients(got["gradients"], wanted["gradients"], 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_plain_rows_over_split_weights(found: Any, expected: Any, name: str) -> None:
    for rank in (0, 1):
        got, wanted = found[rank][name, "plain"], expected[name, "full"]
        assert got["means"] == pytest.approx(wanted["means"], rel=1e-5, abs=1e-6)
        assert_same_gradients(got["gradients"], wanted["gradients"], 2e-5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with an odd number of rows."""
    return write_world(tmp_path_factory.mktemp("made"), num_rows=11)


ADAPTER = {"model__adapter": {"r": 4, "alpha": 8, "dropout": 0}}


@pytest.mark.parametrize(
    ("kind", "distribution"),
    [
        ("full", "shard"),
        pytest.param("full", "replicate", marks=pytest.mark.slow),
        pytest.param("adapter", "replicate", marks=pytest.mark.slow),
        pytest.param("adapter", "shard", marks=pytest.mark.slow),
        pytest.param("loaded", "shard", marks=pytest.mark.slow),
    ],
)
def test_a_run_of_two_processes_logs_what_one_does(
    made: Path, kind: str, distribution: str
) -> None:
    settings: dict[str, Any] = {
        "training__extra_metrics": list(EXTRA),
        "training__learning_rate": 0.02,
        "training__num_train_epochs": 2,
    }
    folder = made / f"{kind}-{distribution}"
    if kind == "adapter":
        settings |= ADAPTER
    if kind == "loaded":
        start = made / f"start-{distribution}"
        done = launch(made, processes=1, output_dir=str(start), training__max_steps=2, **ADAPTER)
        assert done.returncode == 0, done.stderr
        settings["model"] = str(start)
    outputs = [made / f"{folder.name}-{number}" for number in (1, 2)]
    for number, output in enumerate(outputs, start=1):
        more = {"training__distribution": distribution} if number == 2 else {}
        done = launch(made, processes=number, output_dir=str(output), **settings, **more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("token_kl: measured against") == 1
    rows, others = map(read_metrics, outputs)
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert rows[0]["eval_token_kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["eval_token_kl"] > 1e-4
    if kind == "full":
        assert_same_run(*outputs, tolerance=1e-4)


if __name__ == "__main__":
    take_part(work)
