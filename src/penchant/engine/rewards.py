"""Scores of responses: hidden states pooled response by response, and a scalar head on those.

Pooling goes by the layout, never by token ids, so that padding can change nothing. Of a response
`last` takes the hidden state of its last token; `average` and `max` take those of prompt and
response together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from penchant.engine import interface, logprob_head, packed, plain
from penchant.engine.heads import (
    Statistics,
    causal_of,
    device_of,
    has_ordinary_head,
    inside,
    language_head_of,
    load_balancing_of,
    ordinary_head,
    reward_head_of,
    tiled,
)
from penchant.engine.packed_batch import lay_out
from penchant.engine.plain import PaddedRows
from penchant.engine.spans import TreeSpan
from penchant.engine.workspace import Workspace
from penchant.models.reward_settings import Pooling, settings_of
from penchant.types import TokenLogps, TokenTree


@dataclass(frozen=True)
class RewardOutput:
    """What a reward model says of responses, tree after tree, in the order given."""

    scores_R: Float[Tensor, " responses"]
    """In float32 at least, whatever the model computes in."""
    pooled_RH: Float[Tensor, "responses width"]
    """What the head sees: the score is its product with the head's weights."""
    logps: TokenLogps | None = None
    """Where asked for, and the language model's head came along."""
    auxiliary: Tensor | None = None
    """Where asked for: a mixture of experts' load-balancing loss times its coefficient, scalar."""


def pooling_of(model: Any) -> Pooling:
    """As the model's config says; "last" where it does not."""
    return settings_of(causal_of(model).config).pooling


def packed_rewards(
    model: Any,
    trees: Sequence[TokenTree],
    workspace: Workspace,
    with_logps: bool = False,
    pad_to: int = 1,
    routed: bool = False,
) -> RewardOutput:
    """Each prompt runs once; the heads see only what they are asked about. Differentiable.

    Args: `routed`: also the load-balancing loss, over all tokens of the sequence.
    Raises ModelError where a head is missing.
    """
    head, pooling = reward_head_of(model), pooling_of(model)
    balance = load_balancing_of(model) if routed else None
    if with_logps:
        language_head_of(model)
    batch = lay_out(trees, device_of(model), whole=True, pad_to=pad_to)

    def work() -> tuple[Tensor | None, ...]:
        hidden_NH, router_logits = packed.hidden_states(model, batch, routed=routed)
        interface.installed_in_backward(model, hidden_NH)
        auxiliary = balance(router_logits) if balance else None
        if pooling == "last":
            pooled_RH = hidden_NH[batch.last_R]
        else:
            pooled_RH = _pool_spans(hidden_NH, batch.spans, pooling)
        found = (_scores(head, pooled_RH), pooled_RH, auxiliary)
        if not with_logps:
            return found
        hidden_TH = hidden_NH[batch.predictors_T]
        return (*found, _logps(model, hidden_TH, batch.targets_T, workspace))

    with interface.installed(model):
        found = inside(model, work)
    logps = TokenLogps(found[3], batch.lengths_R) if with_logps else None
    return RewardOutput(found[0], found[1], logps, found[2])


def plain_rewards(
    model: Any, trees: Sequence[TokenTree], with_logps: bool = False, routed: bool = False
) -> RewardOutput:
    """The same from padded rows, one per response, through the model's ordinary forward.

    Its load-balancing loss counts a prompt once per response, and no padding.
    """
    head, pooling, inner = reward_head_of(model), pooling_of(model), causal_of(model)
    balance = load_balancing_of(model) if routed else None
    if with_logps:
        language_head_of(model)
    rows = plain.lay_out(trees, device_of(model))

    def work() -> tuple[Tensor | None, ...]:
        output = inner.base_model(
            input_ids=rows.ids_RL,
            attention_mask=rows.attention_RL,
            use_cache=False,
            **({"output_router_logits": True} if routed else {}),
        )
        hidden_RLH = output.last_hidden_state
        pooled_RH = _pool_rows(hidden_RLH, rows, pooling)
        auxiliary = balance(output.router_logits, rows.attention_RL) if balance else None
        found = (_scores(head, pooled_RH), pooled_RH, auxiliary)
        if not with_logps:
            return found
        scored_RL = rows.scored_RL[:, 1:]  # the state at t predicts the token at t + 1
        hidden_TH, targets_T = hidden_RLH[:, :-1][scored_RL], rows.ids_RL[:, 1:][scored_RL]
        return (*found, tiled(model, hidden_TH, targets_T, Statistics())[0])

    found = inside(model, work)
    logps = TokenLogps(found[3], rows.scored_RL.sum(1)) if with_logps else None
    return RewardOutput(found[0], found[1], logps, found[2])


def _scores(head: nn.Module, pooled_RH: Tensor) -> Tensor:
    """The head's products, at least in float32: bfloat16 would round differences of scores away."""
    linear = _linear_of(head)
    if linear is None:  # with an adapter of its own, say
        scores_R: Tensor = head(pooled_RH).squeeze(-1)
        return scores_R
    with torch.autocast(pooled_RH.device.type, enabled=False):
        dtype = torch.promote_types(pooled_RH.dtype, linear.weight.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        return F.linear(pooled_RH.to(dtype), linear.weight.to(dtype))[:, 0]


def _linear_of(head: Any) -> nn.Linear | None:
    """The linear layer that counts, where it is one and nothing else.

    PEFT keeps a trained copy of a head beside the frozen one, behind a wrapper.
    """
    if hasattr(head, "modules_to_save"):
        active = [name for name in head.active_adapters if name in head.modules_to_save]
        switched_off = head.disable_adapters or not active
        head = head.original_module if switched_off else head.modules_to_save[active[0]]
    hooked = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks
    return head if type(head) is nn.Linear and head.bias is None and not hooked else None


def _logps(model: Any, hidden_TH: Tensor, targets_T: Tensor, workspace: Workspace) -> Tensor:
    if not has_ordinary_head(model):
        return tiled(model, hidden_TH, targets_T, Statistics())[0]
    return logprob_head.logps(hidden_TH, ordinary_head(model, workspace), targets_T)


def _pool_rows(hidden_RLH: Tensor, rows: PaddedRows, pooling: Pooling) -> Tensor:
    if pooling == "last":
        return hidden_RLH[torch.arange(len(rows.last_R), device=rows.last_R.device), rows.last_R]
    attention_RL1 = rows.attention_RL[:, :, None]
    if pooling == "max":
        return hidden_RLH.masked_fill(attention_RL1 == 0, -torch.inf).amax(1)
    wide = hidden_RLH.to(_wide(hidden_RLH)) * attention_RL1
    return (wide.sum(1) / (rows.last_R + 1)[:, None]).to(hidden_RLH.dtype)


def _pool_spans(hidden_NH: Tensor, spans: Sequence[TreeSpan], pooling: Pooling) -> Tensor:
    """Average or maximum over each path: what the prompt contributes is computed once."""
    sizes: list[int] = []
    paths: list[tuple[int, int, int]] = []
    """Per response: its prompt's part, its own, and the tokens of both."""
    for span in spans:
        trunk, length = len(sizes), span.prompt_end - span.start
        sizes.append(length)
        for start, end in span.branches:
            paths.append((trunk, len(sizes), length + end - start))
            sizes.append(end - start)
    parts = hidden_NH.split(sizes)
    trunks, branches, lengths = zip(*paths, strict=True)
    at = torch.tensor([trunks, branches, lengths]).to(hidden_NH.device)
    if pooling == "max":
        low = hidden_NH.new_full(hidden_NH.shape[1:], -torch.inf)
        most = torch.stack([part.amax(0) if len(part) else low for part in parts])
        return torch.maximum(most[at[0]], most[at[1]])
    sums = torch.stack([part.to(_wide(part)).sum(0) for part in parts])
    return ((sums[at[0]] + sums[at[1]]) / at[2][:, None]).to(hidden_NH.dtype)


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)
