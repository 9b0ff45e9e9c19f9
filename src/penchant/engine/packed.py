"""The packed layout: forward and backward of trees in one flat sequence.

The head sees only places that predict a scored token, and what follows a response's last scored
token is not run at all where only log-probabilities are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from penchant.engine import embedding, interface, logprob_head, tile_sizes
from penchant.engine.heads import (
    BackwardPass,
    Statistics,
    auxiliary_loss,
    causal_of,
    device_of,
    has_ordinary_head,
    inside,
    ordinary_head,
    tiled,
)
from penchant.engine.logprob_head import Group
from penchant.engine.packed_batch import PackedBatch, lay_out
from penchant.engine.workspace import Workspace
from penchant.types import TokenLogps, TokenTree

TreeLoss = Callable[[Sequence[TokenTree], TokenLogps], Tensor]
_NOTHING = Statistics()


def token_logps(
    model: Any,
    trees: Sequence[TokenTree],
    workspace: Workspace,
    statistics: Statistics = _NOTHING,
    *,
    pad_to: int = 1,
    in_place: bool = False,
) -> TokenLogps:
    """Log-probability of every scored response token [nats], float32 or more; differentiable.

    `in_place` as in `hidden_states`.
    """
    batch = lay_out(trees, device_of(model), pad_to=pad_to)

    def work(reference_TH: Tensor | None) -> tuple[Tensor, ...]:
        hidden_NH = hidden_states(model, batch)[0]
        interface.installed_in_backward(model, hidden_NH)
        hidden_TH = hidden_NH[batch.predictors_T]
        if _is_by_tiles(model, statistics):
            return tiled(model, hidden_TH, batch.targets_T, statistics, reference_TH)
        head = ordinary_head(model, workspace)
        values_T = logprob_head.logps(hidden_TH, head, batch.targets_T)
        return (values_T, *_constants(model, (hidden_TH, reference_TH), batch, statistics))

    with interface.installed(model):
        found = _beside(statistics, batch, lambda reference: inside(model, work, reference))
    return TokenLogps(found[0], batch.lengths_R, **statistics.named(found[1:]))


def _beside(
    statistics: Statistics, batch: PackedBatch, work: Callable[[Tensor | None], Any]
) -> Any:
    """`work` of the reference's hidden states, or of None where no token KL is asked for.

    It runs inside the reference's forward pass, so that split weights of its head are gathered.
    """
    other = statistics.kl_to
    if other is None:
        return work(None)

    def within() -> Any:
        with statistics.of_reference(), interface.installed(other):
            reference_TH = hidden_states(other, batch)[0][batch.predictors_T]
        return work(reference_TH)

    return inside(other, within)


def backward(
    model: Any,
    trees: Sequence[TokenTree],
    wanted: BackwardPass,
    workspace: Workspace,
    pad_to: int = 1,
) -> Tensor:
    """Forward, loss, backward; returns the loss, detached, without the auxiliary one."""
    batch = lay_out(trees, device_of(model), pad_to=pad_to)

    def work(reference_TH: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, router_logits = hidden_states(model, batch, True, wanted.auxiliary_weight > 0)
        hidden_TH = hidden[batch.predictors_T]
        value = _loss(model, trees, (hidden_TH, reference_TH), batch, wanted, workspace)
        if router_logits is None:
            return value, value.detach()
        auxiliary = auxiliary_loss(model, router_logits)
        return value + wanted.auxiliary_weight * auxiliary, value.detach()

    def run(reference_TH: Tensor | None) -> Tensor:
        total, value = inside(model, work, reference_TH)
        if total.requires_grad:
            with interface.installed(model, serves_others=True):
                total.backward()
        return value

    with interface.installed(model):
        value: Tensor = _beside(wanted.statistics, batch, run)
    return value


def _loss(
    model: Any,
    trees: Sequence[TokenTree],
    hidden: tuple[Tensor, Tensor | None],
    batch: PackedBatch,
    wanted: BackwardPass,
    workspace: Workspace,
) -> Tensor:
    """The loss: of an ordinary head part by part where it may be, else by the head itself.

    Args:
        hidden: hidden states that predict the scored tokens, and the reference's.
    """
    hidden_TH, reference_TH = hidden
    statistics = wanted.statistics
    if _is_by_tiles(model, statistics):
        found = tiled(model, hidden_TH, batch.targets_T, statistics, reference_TH)
        known = statistics.named(found[1:])
        return wanted.loss(trees, TokenLogps(found[0], batch.lengths_R, **known))
    known = statistics.named(_constants(model, hidden, batch, statistics))
    head = ordinary_head(model, workspace)
    tile_bytes = tile_sizes.tile_bytes(hidden_TH.device)
    most_tokens = tile_bytes // (len(head.weight_VH) * hidden_TH.element_size())
    enough = min(most_tokens, tile_sizes.full_group(hidden_TH.device))
    parts = _parts(trees, wanted.by_tree, enough, most_tokens)
    groups = _groups(trees, parts, wanted.loss, known)
    return logprob_head.loss(hidden_TH, head, batch.targets_T, groups, tile_bytes)


def _is_by_tiles(model: Any, statistics: Statistics) -> bool:
    """Whether autograd goes through the head itself, which otherwise has formulas of its own."""
    followed = statistics.asked and statistics.differentiable and torch.is_grad_enabled()
    return followed or not has_ordinary_head(model)


@torch.no_grad()
def _constants(
    model: Any, hidden: tuple[Tensor, Tensor | None], batch: PackedBatch, statistics: Statistics
) -> tuple[Tensor, ...]:
    """The statistics alone: log-probabilities and gradients stay what they are without them."""
    if not statistics.asked:
        return ()
    return tiled(model, hidden[0], batch.targets_T, statistics, hidden[1])[1:]


def hidden_states(
    model: Any, batch: PackedBatch, in_place: bool = False, routed: bool = False
) -> tuple[Tensor, Any]:
    """Last hidden states, [N, H], and what the experts' routers said.

    `in_place` lets the embedding add its gradient to `.grad` itself, where it can.
    """
    causal = causal_of(model)
    adds = in_place and not isinstance(model, FSDPModule)
    with embedding.in_place(causal.get_input_embeddings()) if adds else nullcontext():
        output = causal.base_model(
            input_ids=batch.ids_1N,
            position_ids=batch.positions_1N,
            use_cache=False,
            **{interface.SPANS: batch.spans},
            **({"output_router_logits": True} if routed else {}),
        )
    return output.last_hidden_state[0], output.router_logits if routed else None


def _parts(
    trees: Sequence[TokenTree], by_tree: bool, enough: int, most_tokens: int
) -> list[tuple[int, int]]:
    """Ranges of trees whose loss is asked for at a time: enough tokens each, not too many."""
    if not by_tree:
        return [(0, len(trees))]
    parts: list[tuple[int, int]] = []
    first = tokens = 0
    for place, tree in enumerate(trees):
        own = sum(map(sum, tree.response_masks))
        if place > first and (tokens >= enough or tokens + own > most_tokens):
            parts.append((first, place))
            first, tokens = place, 0
        tokens += own
    return [*parts, (first, len(trees))]


def _groups(
    trees: Sequence[TokenTree],
    parts: Sequence[tuple[int, int]],
    loss: TreeLoss,
    known: Mapping[str, Tensor],
) -> list[Group]:
    groups, first = [], 0
    for start, end in parts:
        own = trees[start:end]
        lengths = [sum(mask) for tree in own for mask in tree.response_masks]
        last = first + sum(lengths)
        own_known = {name: value_T[first:last] for name, value_T in known.items()}
        groups.append((first, last, _judge(own, lengths, loss, own_known)))
        first = last
    return groups


def _judge(
    trees: Sequence[TokenTree],
    lengths: Sequence[int],
    loss: TreeLoss,
    known: Mapping[str, Tensor],
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The loss of some trees and its derivative by their log-probabilities.

    Args:
        known: further fields of their TokenLogps.
    """

    def judge(values_T: Tensor) -> tuple[Tensor, Tensor]:
        leaf = values_T.detach().requires_grad_()
        lengths_R = torch.tensor(lengths, device=leaf.device)
        with torch.enable_grad():
            value = loss(trees, TokenLogps(leaf, lengths_R, **known))
        if not value.requires_grad:
            return value, torch.zeros_like(leaf)
        (coefficient_T,) = torch.autograd.grad(value, leaf)
        return value.detach(), coefficient_T

    return judge
