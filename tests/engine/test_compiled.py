"""Compiled layers: the same values and gradients, one compilation for all sizes, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from penchant import engine
from penchant.engine import compiled, self_check
from penchant.errors import ModelError
from penchant.train import policy
from tests.engine.test_packed import assert_close, loss_of_trees
from tests.engine.test_packed_scores import reward_model
from tests.tiny import assert_same_gradients, gradients, random_trees, vivid_model


def test_what_cannot_be_compiled_says_why() -> None:
    plain = engine.prepare(vivid_model(), "plain")
    with pytest.raises(ModelError, match="its layout is plain"):
        compiled.compile_layers(plain)
    assert not compiled.is_compiled(plain.model)


def test_auto_leaves_a_processor_and_short_runs_alone() -> None:
    prepared = engine.prepare(vivid_model(), "packed")
    policy.compile_layers(prepared, "auto", 10**6)
    policy.compile_layers(prepared, False, 10**6)
    assert not compiled.is_compiled(prepared.model)
    with pytest.raises(ModelError, match="layout is plain"):
        policy.compile_layers(replace(prepared, layout="plain"), True, 1)


def test_layers_that_give_other_values_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = engine.prepare(vivid_model(), "packed")

    def shifted(layer: Any, **_: Any) -> None:
        layer._compiled_call_impl = lambda hidden, **given: 1.5 * layer._call_impl(hidden, **given)

    monkeypatch.setattr(torch.nn.Module, "compile", shifted)
    with pytest.raises(ModelError, match="apart"):
        compiled.compile_layers(prepared)
    assert not compiled.is_compiled(prepared.model)
    assert self_check.why_not_packed(prepared.model) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma2", "reward model"])
def test_values_and_gradients_are_the_same_and_sizes_share_a_compilation(name: str) -> None:
    is_reward = name == "reward model"
    model = reward_model("llama", torch.float32) if is_reward else vivid_model(name)
    prepared = engine.prepare(model, "packed")
    batches = [random_trees(3, seed, longest=8 + 3 * seed) for seed in range(5)]

    def run(trees: list[Any]) -> torch.Tensor:
        if is_reward:
            found = prepared.scores(trees)
            found.square().sum().backward()
            return found.detach()
        prepared.backward_by_tree(trees, loss_of_trees)
        with torch.no_grad():
            return prepared.logps(trees).values_T

    expected = [(run(trees), gradients(model)) for trees in batches]
    compiled.compile_layers(prepared)
    for number, (trees, (values, wanted)) in enumerate(zip(batches, expected, strict=True)):
        assert_close(run(trees), values, 1e-4)
        assert_same_gradients(gradients(model), wanted, 1e-3)
        if number == 1:
            before = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == before > 0
