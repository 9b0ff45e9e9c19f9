"""Packed in two real processes, replicated and with split weights (FSDP2): as in one."""

from __future__ import annotations

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
from tests.engine.test_packed_training import vivid_adapter
from tests.tiny import assert_same_gradients, random_trees, vivid_model
from tests.train.test_step import Coupled
from tests.two_processes import results_of, take_part, whole_gradients

CPU = torch.device("cpu")
KINDS = ["full", "tied", "adapter", "head-adapter", "window", "checkpointing", "coupled"]
BUDGETS = {"one-batch": 10**6, "many": 45}
"""With one batch per process, and with so small ones that their numbers differ."""


def build(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    if kind == "window":
        return vivid_model("mistral-window", dtype)
    model = vivid_model("llama-tied" if kind == "tied" else "llama", dtype)
    if kind == "adapter":
        return vivid_adapter(model, dtype)
    if kind == "head-adapter":
        return vivid_adapter(model, dtype, target_modules=["q_proj", "lm_head"])
    if kind == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return model


def run_step(
    kind: str, budget: int, processes: Processes, layout: Any, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Loss, metrics and whole gradients of one step, on every process."""
    trees = random_trees(5, num_responses=3)
    model, other = build(kind), vivid_model("qwen3")
    if processes.sharded:
        model, other = (sharding.shard(one, CPU, dtype) for one in (model, other))
    store = ReferenceStore()
    store.fill(engine.prepare(other, layout), trees, budget, processes=processes)
    objective: Any = Coupled() if kind == "coupled" else objectives.load("dpo", beta=0.3)
    prepared = engine.prepare(model, layout)
    step = Step(prepared, objective, store, budget, processes)
    before = step.evaluate(trees).means()
    means = step.train(trees).means()
    found = whole_gradients(model)
    after = step.evaluate(trees).means()
    return {
        "before": before,
        "means": means,
        "after": after,
        "gradients": found,
        "layout": (prepared.layout, prepared.reason),
    }


def cases() -> Iterator[tuple[str, str, bool]]:
    for kind in KINDS:
        for budget in BUDGETS if kind == "full" else ["many"]:
            for sharded in (False, True):
                yield kind, budget, sharded


def work(folder: Path) -> dict[Any, Any]:
    """What each of the two processes does."""
    results = {
        (kind, budget, sharded): run_step(
            kind, BUDGETS[budget], Processes.current(sharded=sharded), "packed"
        )
        for kind, budget, sharded in cases()
    }
    sharded = Processes.current(sharded=True)
    results["bfloat16"] = run_step("full", 10**6, sharded, "auto", torch.bfloat16)
    results["plain"] = run_step("full", 45, sharded, "plain")
    return results


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What the two processes came to, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    return results_of("tests.engine.test_packed_processes", folder)


@pytest.mark.parametrize(("kind", "budget", "sharded"), list(cases()))
def test_two_processes_come_to_what_one_does(
    found: list[dict[Any, Any]], kind: str, budget: str, sharded: bool
) -> None:
    expected = run_step(kind, 10**6, ALONE, "plain")
    for rank in (0, 1):
        got = found[rank][kind, budget, sharded]
        assert got["layout"][0] == "packed"
        for when in ("before", "means", "after"):
            assert got[when] == pytest.approx(expected[when], rel=1e-5, abs=1e-6), when
        assert_same_gradients(got["gradients"], expected["gradients"], 2e-5)


def test_split_weights_computing_in_bfloat16(found: list[dict[Any, Any]]) -> None:
    expected = run_step("full", 10**6, ALONE, "plain")
    got = found[0]["bfloat16"]
    assert got["layout"][0] == "packed", got["layout"][1]
    assert got["means"]["loss"] == pytest.approx(expected["means"]["loss"], rel=0.05)
    for name, value in expected["gradients"].items():
        assert got["gradients"][name].dtype == torch.float32
        distance = (got["gradients"][name] - value).norm() / value.norm()
        assert 1e-5 < distance < 0.1, name


def test_the_plain_layout_still_runs_split(found: list[dict[Any, Any]]) -> None:
    expected = run_step("full", 10**6, ALONE, "plain")
    assert_same_gradients(found[1]["plain"]["gradients"], expected["gradients"], 2e-5)


if __name__ == "__main__":
    take_part(work)
