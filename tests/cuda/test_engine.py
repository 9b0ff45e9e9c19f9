"""The engine on a CUDA device, against single rows in float64 on the processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from penchant import engine
from penchant.engine import compiled, varlen_attention
from penchant.models.adapters import add_lora
from tests.cuda.device import NEEDS_CUDA, loss_on_cpu
from tests.engine.test_packed import TREES, assert_close, oracle
from tests.engine.test_packed_scores import reward_model, row_by_row
from tests.tiny import arithmetic_in, assert_same_gradients, gradients, random_trees, vivid_model

pytestmark = NEEDS_CUDA
NAMES = ["llama", "llama-tied", "mistral-window", "gemma2", "gpt2", "qwen3", "qwen3_moe", "gpt_oss"]
LAYOUTS = pytest.mark.parametrize("layout", ["plain", "packed"])


def on_cpu(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if value is None else value.cpu() for name, value in tensors.items()}


def exact(name: str) -> tuple[Tensor, float, dict[str, Tensor | None]]:
    with arithmetic_in(torch.float64):
        logps, loss, wanted = oracle(name, torch.float64)
    return logps.values_T, loss, wanted


@LAYOUTS
@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_single_rows(name: str, layout: Any) -> None:
    values_T, loss, wanted = exact(name)
    model = vivid_model(name).cuda()
    prepared = engine.prepare(model, layout)
    found = prepared.logps(TREES)
    assert found.values_T.is_cuda
    assert_close(found.values_T.detach().cpu(), values_T, 1e-4)
    got = prepared.backward_by_tree(TREES, loss_on_cpu)
    assert got.item() == pytest.approx(loss, rel=1e-4)
    assert_same_gradients(on_cpu(gradients(model)), wanted, 1e-3)


def distance(got: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> float:
    """Of all gradients together, relative."""
    pairs = [(got[name].double(), one.double()) for name, one in wanted.items() if one is not None]
    apart = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return float(apart / torch.stack([b.norm() for _, b in pairs]).norm())


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3", "gpt2", "mistral-window"])
def test_bfloat16_packed_is_as_near_as_plain(name: str) -> None:
    values_T, _, wanted = exact(name)
    apart, off = {}, {}
    for layout in ("plain", "packed"):
        model = vivid_model(name).cuda()
        prepared = engine.prepare(model, layout, dtype=torch.bfloat16)
        assert prepared.layout == layout
        with torch.no_grad():
            found_T = prepared.logps(TREES).values_T.cpu().double()
        off[layout] = float((found_T - values_T).norm() / values_T.norm())
        prepared.backward_by_tree(TREES, loss_on_cpu)
        apart[layout] = distance(on_cpu(gradients(model)), wanted)
    assert off["packed"] <= 1.5 * off["plain"] + 1e-3
    assert apart["packed"] <= 1.5 * apart["plain"] + 1e-2


def test_auto_packs_in_bfloat16_and_takes_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = varlen_attention.tree_attention

    def counted(*given: Any) -> Tensor:
        calls.append(given[0].dtype)
        return whole(*given)

    monkeypatch.setattr(varlen_attention, "tree_attention", counted)
    prepared = engine.prepare(vivid_model().cuda(), dtype=torch.bfloat16)
    assert prepared.layout == "packed", prepared.reason
    calls.clear()
    prepared.backward_by_tree(TREES, loss_on_cpu)
    assert calls == [torch.bfloat16] * 2, "one call per layer"


@LAYOUTS
def test_an_adapter_and_checkpointing_change_nothing(layout: Any) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = add_lora(vivid_model().cuda(), r=4, alpha=8, dropout=0.0)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter += 0.1
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
            model.train()
        engine.prepare(model, layout).backward_by_tree(TREES, loss_on_cpu)
        found.append(gradients(model))
    assert_same_gradients(on_cpu(found[1]), on_cpu(found[0]), 1e-4)


@pytest.mark.parametrize("kind", ["whole", "adapter", "checkpointing"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_compiled_layers_are_as_near_as_plain(name: str, kind: str) -> None:
    found, losses = [], []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = vivid_model(name).cuda()
        if kind == "adapter":
            model = add_lora(model, r=4, alpha=8, dropout=0.0)
        if kind == "checkpointing":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        prepared = engine.prepare(model, "packed", dtype=torch.bfloat16)
        if compiles:
            compiled.compile_layers(prepared)
            assert compiled.is_compiled(model)
        losses.append(prepared.backward_by_tree(TREES, loss_on_cpu).item())
        found.append(gradients(model))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert distance(on_cpu(found[1]), on_cpu(found[0])) < 0.1


@LAYOUTS
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_agree_with_single_rows(name: str, layout: Any) -> None:
    expected = row_by_row(reward_model(name))
    found = engine.prepare(reward_model(name, torch.float32).cuda(), layout).scores(TREES)
    assert_close(found.detach().cpu(), expected.detach(), 1e-4)


def test_many_responses_of_long_trees_in_bfloat16() -> None:
    """Longer than a block of the kernel, eight responses, uneven."""
    trees = random_trees(3, 5, longest=400, num_responses=8)
    model = vivid_model()
    with torch.no_grad():
        expected = engine.prepare(model, "plain").logps(trees).values_T
        found = engine.prepare(model.cuda(), "packed", dtype=torch.bfloat16).logps(trees).values_T
        plain = engine.prepare(model, "plain", dtype=torch.bfloat16).logps(trees).values_T
    apart, usual = ((one.cpu() - expected).norm() / expected.norm() for one in (found, plain))
    assert apart <= 1.5 * usual + 1e-3
