"""Whether a model may be packed: two small trees, run both ways, before first use.

What is known to be impossible is refused by name; everything else must agree with the plain
layout. A token of one branch is changed too: nothing else in the sequence may notice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from penchant.engine import packed, plain, rewards
from penchant.engine.heads import causal_of, is_reward_model
from penchant.engine.memory import is_out_of_memory
from penchant.engine.workspace import Workspace
from penchant.types import TokenTree

AGREES = "agrees with the plain layout on two small trees"
_ROUNDINGS = 2
"""Units in the last place by which two layouts may differ without any reason."""
_WINDOW = 6
"""Sliding windows are shortened to this while checking."""


def why_not_packed(model: Any) -> str | None:
    """Why a model must stay on plain; None where it can be packed."""
    reason = _refused(model)
    if reason is not None:
        return reason
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), _short_windows(model):
            checks = (_disagreement(model, of_scores) for of_scores in _kinds(model))
            return next((found for found in checks if found is not None), None)
    except Exception as error:  # whatever a model raises there, plain still works
        if is_out_of_memory(error):
            raise
        return str(error).split("\n")[0] or type(error).__name__
    finally:
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """Sliding windows are shortened, so that small trees reach them; put back afterwards.

    Some architectures hand theirs over as a mask only, which packed trees do without.
    """
    owners = [*model.modules(), *{id(m.config): m.config for m in _parts(model)}.values()]
    found = [owner for owner in owners if isinstance(vars(owner).get("sliding_window"), int)]
    before = [owner.sliding_window for owner in found]
    try:
        for owner in found:
            owner.sliding_window = min(owner.sliding_window, _WINDOW)
        yield
    finally:
        for owner, window in zip(found, before, strict=True):
            owner.sliding_window = window


def _parts(model: Any) -> list[PreTrainedModel]:
    return [part for part in model.modules() if isinstance(part, PreTrainedModel)]


def attention_dropout(model: Any) -> float:
    """The probability with which a model drops attention weights while training."""
    values = causal_of(model).config.get_text_config().to_dict().items()
    found = [v for name, v in values if "att" in name and "drop" in name and isinstance(v, float)]
    return max(found, default=0.0)


def _refused(model: Any) -> str | None:
    causal = causal_of(model)
    name = type(causal).__name__
    if not getattr(causal, "_supports_attention_backend", False):
        return f"{name} does not go through transformers' attention interface"
    if not _takes(causal.base_model, "position_ids"):
        return f"{name} takes no position ids, so branches cannot start where their prompt ends"
    if getattr(causal.config.get_text_config(), "attention_chunk_size", None):
        return f"{name} attends in chunks"
    if model.training and attention_dropout(model) > 0:
        return "attention dropout is on"
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        return "its adapter puts tokens of its own before the prompt"
    return None


def _takes(module: Any, name: str) -> bool:
    return name in inspect.signature(type(module).forward).parameters


def _disagreement(model: Any, of_scores: bool) -> str | None:
    """Compares the layouts, and looks for a leak from one branch to another."""
    trees = small_trees(model)
    run_as_trained, run_plain = _runs(model, of_scores)

    def run_packed(trees: Sequence[TokenTree]) -> Tensor:
        # Sharded models want a backward pass after each forward one with gradients.
        with torch.set_grad_enabled(not isinstance(model, FSDPModule)):
            return run_as_trained(trees).detach()

    expected = run_plain(trees)
    alone = torch.cat([run_plain([row]) for tree in trees for row in _rows(tree)])
    found, dtype = run_packed(trees), _dtype_of_hidden_states(model, run_packed, trees)
    if not torch.isfinite(found).all():
        return "it gives values that are not finite when packed"
    noise = float((alone - expected).abs().max())
    unit = torch.finfo(dtype).eps * max(1.0, float(expected.abs().max()))
    allowed = 10 * noise + _ROUNDINGS * unit
    difference = float((found - expected).abs().max())
    if difference > allowed:
        return f"its packed values differ from the plain ones by {difference:.1e}"
    first = trees[0].response_ids[0]
    own = len(found) // sum(len(tree.response_ids) for tree in trees) if of_scores else len(first)
    other = tuple((token + 1) % _vocabulary(model) for token in first)
    changed = replace(trees[0], response_ids=(other, *trees[0].response_ids[1:]))
    leak = float((run_packed([changed, *trees[1:]])[own:] - found[own:]).abs().max())
    # Which experts a token goes to changes the shapes of the others' products, so their rounding.
    if leak > (allowed if _has_experts(model) else 0.0):
        return f"a token of one response changes another by {leak:.1e} when packed"
    return None


def small_trees(model: Any) -> list[TokenTree]:
    """Random tokens, and paths longer than a shortened window."""
    source = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        drawn = torch.randint(_vocabulary(model), (count,), generator=source)
        return tuple(drawn.tolist())

    return [
        TokenTree(
            row_id=f"self-check:{lengths}",
            prompt_ids=ids(lengths[0]),
            response_ids=tuple(ids(length) for length in lengths[1:]),
            response_masks=tuple((True,) * length for length in lengths[1:]),
        )
        for lengths in ((11, 6, 9, 1), (3, 4, 7))
    ]


def _rows(tree: TokenTree) -> list[TokenTree]:
    return [
        replace(tree, response_ids=(ids,), response_masks=(mask,))
        for ids, mask in zip(tree.response_ids, tree.response_masks, strict=True)
    ]


def _vocabulary(model: Any) -> int:
    return int(causal_of(model).get_input_embeddings().weight.shape[0])


def _dtype_of_hidden_states(
    model: Any, run: Callable[[Sequence[TokenTree]], Tensor], trees: Sequence[TokenTree]
) -> torch.dtype:
    """The dtype that the model computes in, which a sharded one's weights do not tell."""
    seen: list[torch.dtype] = []

    def look(module: Any, arguments: Any, output: Any) -> None:
        seen.append(output.last_hidden_state.dtype)

    handle = causal_of(model).base_model.register_forward_hook(look)
    try:
        run(trees[-1:])
    finally:
        handle.remove()
    return seen[0]


def _has_experts(model: Any) -> bool:
    config = causal_of(model).config.get_text_config()
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts"))


def _kinds(model: Any) -> list[bool]:
    """What is checked: scores of a reward model (True), log-probabilities of a language head."""
    has_language_head = causal_of(model).get_output_embeddings() is not None
    return [True] * is_reward_model(model) + [False] * has_language_head


def _runs(
    model: Any, of_scores: bool
) -> tuple[Callable[[Sequence[TokenTree]], Tensor], Callable[[Sequence[TokenTree]], Tensor]]:
    """What the two layouts compute: pooled states of a reward model, or log-probabilities."""
    workspace = Workspace()
    if of_scores:
        return (
            lambda trees: rewards.packed_rewards(model, trees, workspace).pooled_RH.flatten(),
            lambda trees: rewards.plain_rewards(model, trees).pooled_RH.flatten(),
        )
    if is_reward_model(model):
        return (
            lambda trees: _logps(rewards.packed_rewards(model, trees, workspace, True)),
            lambda trees: _logps(rewards.plain_rewards(model, trees, True)),
        )
    return (
        lambda trees: packed.token_logps(model, trees, workspace, in_place=True).values_T,
        lambda trees: plain.token_logps(model, trees).values_T,
    )


def _logps(output: rewards.RewardOutput) -> Tensor:
    assert output.logps is not None, "they were asked for"
    return output.logps.values_T
