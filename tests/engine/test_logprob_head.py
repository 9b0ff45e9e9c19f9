"""The head: exact in tiles, whatever a model does to its logits, and never [tokens, vocabulary]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from penchant import engine
from penchant.engine import tile_sizes
from penchant.types import TokenLogps, TokenTree
from tests.engine.test_packed import IN_FLOAT64, assert_close, coupled_loss, loss_of_trees, naive
from tests.engine.test_packed_training import vivid_adapter
from tests.tiny import assert_same_gradients, gradients, mostly_slow, tree_of, vivid_model

VOCABULARY = 8192
ROW = VOCABULARY * 4
"""Bytes of one token's logits."""


class Watch(TorchDispatchMode):
    """The largest storage that any operation gives out, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.what = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                size = value.untyped_storage().nbytes()
                if size > self.largest:
                    self.largest, self.what = size, f"{func} {tuple(value.shape)}"
        return result


def peak(work: Callable[[], Any]) -> tuple[int, int]:
    """Most bytes held at a time, and the largest allocation, as the allocator itself sees them.

    Other than `Watch`, it also sees what operations allocate inside.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [
        (event.start_ns(), event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        most = max(most, held)
    return most, max(size for _, size in events)


def wide_model(**sizes: Any) -> Any:
    return vivid_model("llama", num_hidden_layers=1, vocab_size=VOCABULARY, **sizes)


def many_trees(num: int) -> list[TokenTree]:
    """A hundred scored tokens each."""
    return [tree_of(10, 50, 50, seed=seed) for seed in range(num)]


def summed(logps: TokenLogps) -> torch.Tensor:
    return logps.values_T.square().sum()


def by_hand(prepared: engine.Engine, trees: list[TokenTree]) -> None:
    summed(prepared.logps(trees)).backward()


def backward(prepared: engine.Engine, trees: list[TokenTree]) -> None:
    prepared.backward(trees, summed)


def by_tree(prepared: engine.Engine, trees: list[TokenTree]) -> None:
    prepared.backward_by_tree(trees, lambda part, logps: summed(logps))


@torch.no_grad()
def scoring(prepared: engine.Engine, trees: list[TokenTree]) -> None:
    prepared.logps(trees)


def entropies(prepared: engine.Engine, trees: list[TokenTree]) -> None:
    logps = prepared.logps(trees, entropy=True)
    (summed(logps) + logps.entropy_T.sum()).backward()


WAYS = pytest.mark.parametrize("way", [by_hand, backward, by_tree, scoring, entropies])
KINDS: dict[str, Callable[[], Any]] = {
    "linear": wide_model,
    "tied": lambda: wide_model(tie_word_embeddings=True),
    "adapted": lambda: vivid_adapter(wide_model(), torch.float32, target_modules=["lm_head"]),
}


WATCHED = [("linear", way) for way in (by_hand, backward, by_tree, scoring, entropies)]
WATCHED += [("tied", by_hand), ("tied", by_tree), ("adapted", by_tree)]


@pytest.mark.parametrize(("kind", "way"), mostly_slow(WATCHED, quick=WATCHED[:4]))
def test_no_tensor_grows_with_tokens_times_vocabulary(kind: str, way: Callable[..., None]) -> None:
    """Twice the tokens, the same largest tensor, which is smaller than the smaller number's."""
    prepared = engine.prepare(KINDS[kind](), "packed")
    largest = []
    for num in (21, 42):
        with Watch() as watch:
            way(prepared, many_trees(num))
        largest.append(watch.largest)
        assert watch.largest <= 0.6 * num * 100 * ROW, watch.what
    assert largest[1] <= 1.1 * largest[0], watch.what


@WAYS
def test_few_tokens_are_no_exception(way: Callable[..., None]) -> None:
    """A call whose tokens would fit into one tile."""
    prepared = engine.prepare(wide_model(), "packed")
    with Watch() as watch:
        way(prepared, many_trees(6))
    weight = VOCABULARY * 32 * 4
    assert watch.largest <= max(0.6 * 600 * ROW, weight), watch.what


@WAYS
def test_the_plain_layout_fails_this_watch(way: Callable[..., None]) -> None:
    prepared = engine.prepare(wide_model(), "plain")
    with Watch() as watch:
        way(prepared, many_trees(10))
    assert watch.largest >= 1000 * ROW


@WAYS
def test_what_is_held_at_a_time_does_not_grow_with_the_tokens(
    way: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do many small pieces add up to what must not be there: the allocator is watched."""
    # The sizes of a tile and of what may be kept are constants; small ones show it sooner.
    monkeypatch.setattr(tile_sizes, "_TILE_BYTES", 200 * ROW)
    monkeypatch.setattr(tile_sizes, "MOST_ROWS", 100)
    prepared = engine.prepare(wide_model(), "packed")
    way(prepared, many_trees(2))
    prepared.model.zero_grad(set_to_none=True)
    most = []
    for num in (12, 24):
        held, largest = peak(lambda num=num: way(prepared, many_trees(num)))
        assert largest <= 0.6 * num * 100 * ROW
        most.append(held)
        prepared.model.zero_grad(set_to_none=True)
    assert most[1] < 24 * 100 * ROW, "all logits of the larger call were held at a time"
    # Activations of the body do grow: a few kB per token, not 32 kB of logits.
    assert most[1] - most[0] < 0.15 * 12 * 100 * ROW


def test_the_allocator_sees_the_logits_of_the_plain_layout() -> None:
    prepared = engine.prepare(wide_model(), "plain")
    held, largest = peak(lambda: by_tree(prepared, many_trees(10)))
    assert held >= 2 * 1000 * ROW
    assert largest >= 1000 * ROW


@IN_FLOAT64
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 1025])
def test_any_number_of_tokens_around_the_size_of_tiles(num_tokens: int) -> None:
    model = vivid_model("llama", torch.float64, num_hidden_layers=1)
    half = num_tokens // 2
    trees = [tree_of(2, num_tokens - half, *([half] if half else []))]
    expected = naive(model, trees)
    loss_of_trees(trees, expected).backward()
    wanted = gradients(model)
    prepared = engine.prepare(model, "packed")
    logps = prepared.logps(trees)
    assert_close(logps.values_T.detach(), expected.values_T.detach(), 1e-10)
    loss_of_trees(trees, logps).backward()
    assert_same_gradients(gradients(model), wanted, 1e-10)
    prepared.backward_by_tree(trees, loss_of_trees)
    assert_same_gradients(gradients(model), wanted, 1e-10)


@IN_FLOAT64
@pytest.mark.parametrize(
    "name", mostly_slow(["llama", "gemma2", "granite", "llama-tied"], quick=["gemma2"])
)
@pytest.mark.parametrize("keeps", [True, False])
def test_logits_kept_or_computed_twice_give_the_same_gradients(
    name: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both paths of the three-product head, with groups of one tree, several trees, half a tree."""
    trees = [tree_of(3, 300, 250), tree_of(5, 7, 9), *(tree_of(2, 90, seed=s) for s in range(8))]
    one, two = (vivid_model(name, torch.float64) for _ in range(2))
    loss_of_trees(trees, naive(one, trees)).backward()
    wanted = gradients(one)
    monkeypatch.setattr(tile_sizes, "_TILE_BYTES", 2**40 if keeps else 4096)
    prepared = engine.prepare(two, "packed")
    prepared.backward_by_tree(trees, loss_of_trees)
    assert_same_gradients(gradients(two), wanted, 1e-10)
    coupled_loss(naive(one, trees)).backward()
    prepared.backward(trees, coupled_loss)
    assert_same_gradients(gradients(two), gradients(one), 1e-10)


HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "soft-cap": ("gemma2", {"final_logit_softcapping": 0.7}),
    "scale": ("cohere", {"logit_scale": 3.0}),
    "divided": ("granite", {"logits_scaling": 0.2}),
    "bias": ("phi", {}),
    "tied": ("gpt2", {}),
    "scaled-embeddings": ("gemma", {}),
    "untied": ("gpt2", {"tie_word_embeddings": False}),
}


@IN_FLOAT64
@pytest.mark.parametrize("kind", HEADS)
def test_whatever_a_model_does_to_its_logits(kind: str) -> None:
    name, sizes = HEADS[kind]
    trees = [tree_of(5, 9, 4), tree_of(2, 6, 1, 8)]
    model = vivid_model(name, torch.float64, **sizes)
    expected = naive(model, trees)
    loss_of_trees(trees, expected).backward()
    wanted = gradients(model)
    prepared = engine.prepare(model, "packed")
    logps = prepared.logps(trees)
    assert_close(logps.values_T.detach(), expected.values_T.detach(), 1e-10)
    prepared.backward_by_tree(trees, loss_of_trees)
    assert_same_gradients(gradients(model), wanted, 1e-10)
    loss_of_trees(trees, logps).backward()
    assert_same_gradients(gradients(model), wanted, 1e-10)


@pytest.mark.parametrize("layout", ["plain", "packed"])
@pytest.mark.parametrize("scale", [1e3, 1e-4])
def test_extreme_logits_stay_finite_and_exact(layout: Any, scale: float) -> None:
    """Logits of thousands, as a diverging model gives: no overflow, no log of zero."""
    model = vivid_model("llama")
    with torch.no_grad():
        model.lm_head.weight *= scale
    trees = [tree_of(5, 9, 4), tree_of(2, 6, 1, 8)]
    expected = naive(model, trees)
    (expected.values_T.sum() / scale).backward()
    wanted = gradients(model)
    prepared = engine.prepare(model, layout)
    values = prepared.logps(trees).values_T
    assert values.isfinite().all()
    assert_close(values.detach(), expected.values_T.detach(), 1e-5)
    prepared.backward_by_tree(trees, lambda part, logps: logps.values_T.double().sum() / scale)
    got = gradients(model)
    assert all(value.isfinite().all() for value in got.values())
    assert_same_gradients(got, wanted, 1e-4)


def test_long_responses_sum_without_loss() -> None:
    """Thousands of tokens in float32 against float64: what a sum in float32 would lose."""
    trees = [tree_of(3, 3000)]
    model, exact = (
        vivid_model("llama", d, num_hidden_layers=1) for d in (torch.float32, torch.float64)
    )
    with torch.no_grad():
        total = engine.prepare(model, "packed").logps(trees).values_T.double().sum()
        expected = engine.prepare(exact, "packed").logps(trees).values_T.sum()
    assert total.item() == pytest.approx(expected.item(), rel=2e-7)


def test_the_loss_may_be_scaled_and_the_graph_used_once() -> None:
    """Gradients are linear in what comes from above, also for the gradients made on the way."""
    trees = many_trees(2)
    found = []
    for factor in (1.0, -2.5):
        model = wide_model()
        loss = engine.prepare(model, "packed").logps(trees)
        (factor * summed(loss)).backward()
        found.append(gradients(model))
        engine.prepare(model, "packed").backward_by_tree(
            trees, lambda part, logps, factor=factor: factor * summed(logps)
        )
        assert_same_gradients(gradients(model), found[-1], 1e-5)
    scaled = {name: -2.5 * value for name, value in found[0].items() if value is not None}
    assert_same_gradients(found[1], scaled, 1e-5)


@IN_FLOAT64
def test_a_loss_that_ignores_its_tokens_or_has_no_gradient() -> None:
    model = vivid_model("llama", torch.float64)
    trees = [tree_of(5, 9, 4), tree_of(2, 6, 1, 8)]
    prepared = engine.prepare(model, "packed")
    value = prepared.backward_by_tree(
        trees, lambda part, logps: logps.values_T.sum() * (len(part[0].prompt_ids) == 5)
    )
    assert value.isfinite()
    constant = prepared.backward(trees, lambda logps: logps.values_T.detach().sum())
    assert constant.isfinite()
