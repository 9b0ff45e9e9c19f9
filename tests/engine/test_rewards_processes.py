"""Rewards in two real processes, replicated and with split weights (FSDP2): as in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from penchant import engine
from penchant.engine import sharding
from penchant.models.adapters import add_lora
from penchant.models.config import ModelConfig
from penchant.models.reward_head import load_reward_model
from penchant.models.save import save_model
from tests.engine.test_rewards import loss_of, pooled_model
from tests.tiny import assert_same_gradients, random_trees, tiny_tokenizer, vivid_model
from tests.two_processes import results_of, take_part, whole_gradients

CPU = torch.device("cpu")
KINDS = ["last", "average", "max", "checkpointing", "adapter", "with-logps"]
LAYOUTS = ["plain", "packed"]
TREES = random_trees(6, num_responses=3)


def build(kind: str) -> Any:
    pooling = kind if kind in ("last", "average", "max") else "average"
    model = pooled_model(pooling, dtype=torch.float32, head=kind == "with-logps")
    if kind == "adapter":
        torch.manual_seed(5)
        model = add_lora(model, r=2, alpha=4, dropout=0.0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape)
    if kind == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return model


def run(kind: str, layout: Any, own: slice, sharded: bool = False) -> dict[str, Any]:
    """Scores of some of the trees, and whole gradients of a loss of theirs."""
    model = build(kind)
    if sharded:
        model = sharding.shard(model, CPU, torch.float32)
    prepared = engine.prepare(model, layout)
    with torch.no_grad():
        scores_R = prepared.scores(TREES[own])
    found = prepared.rewards(TREES[own], with_logps=kind == "with-logps")
    loss_of(found.scores_R, found.logps and found.logps.values_T).backward()
    grads = whole_gradients(model)
    return {"scores": scores_R, "gradients": grads, "layout": prepared.layout}


def whole_weights(path: Path) -> dict[str, Any]:
    """What a checkpoint of split weights would hold, of a model with its language head."""
    config = ModelConfig(path=str(path))
    model = load_reward_model(config, torch.float32, seed=1, with_language_head=True)
    model = sharding.shard(model, CPU, torch.float32)
    weights = sharding.whole_weights(model)
    sharding.put_weights(model, {name: 2 * value for name, value in weights.items()})
    return sharding.whole_weights(model)


def own_part(rank: int) -> slice:
    return slice(3 * rank, 3 * rank + 3)


def work(folder: Path) -> dict[Any, Any]:
    """What each of the two processes does."""
    rank = dist.get_rank()
    results = {
        (kind, layout): run(kind, layout, own_part(rank), sharded=True)
        for kind in KINDS
        for layout in LAYOUTS
    }
    results["weights"] = whole_weights(folder / "lm")
    return results


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What the two processes came to, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    save_model(vivid_model("llama"), tiny_tokenizer(), folder / "lm")
    return results_of("tests.engine.test_rewards_processes", folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_split_weights_give_the_scores_and_gradients_of_whole_ones(
    found: list[dict[Any, Any]], kind: str, layout: str
) -> None:
    alone = [run(kind, "plain", own_part(rank)) for rank in (0, 1)]
    for rank, expected in enumerate(alone):
        got = found[rank][kind, layout]
        assert got["layout"] == layout
        torch.testing.assert_close(got["scores"], expected["scores"], rtol=1e-5, atol=1e-5)
    grads = [expected["gradients"] for expected in alone]
    # Split models reduce gradients to their mean over processes.
    mean = {n: None if g is None else (g + grads[1][n]) / 2 for n, g in grads[0].items()}
    for rank in (0, 1):
        assert_same_gradients(found[rank][kind, layout]["gradients"], mean, 2e-5)


def test_whole_weights_of_split_ones_leave_the_language_head_out(
    found: list[dict[Any, Any]],
) -> None:
    weights, others = found[0]["weights"], found[1]["weights"]
    assert not others and "score.weight" in weights
    assert not [name for name in weights if "lm_head" in name]
    before = vivid_model("llama").model.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(weights[f"model.{name}"], 2 * value)


if __name__ == "__main__":
    take_part(work)
