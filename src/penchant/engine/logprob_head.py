"""Log-probabilities of given tokens from hidden states, in tiles: no [tokens, vocabulary] tensor.

    logit = softcap * tanh(scale * h W' / softcap)
    value = logit[target] - log sum exp(logit)
    d value / d logit = onehot(target) - softmax(logit)

Where the loss of a group of tokens is known as soon as their log-probabilities are, the group's
probabilities are kept and serve the gradient: three matrix products (logits, gradient of the
hidden states, gradient of the weight). Otherwise logits are computed a second time, tile by tile.

    T   scored tokens;  C  rows of a tile;  V  vocabulary;  H  width of the model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penchant.engine import tile_sizes
from penchant.engine.tile_maths import (
    Shape,
    exponentiate_,
    log_sum_exp,
    shape_,
    softmax_,
    to_slope_,
)
from penchant.engine.workspace import Workspace, add_to

Group = tuple[int, int, Callable[[Tensor], tuple[Tensor, Tensor]]]
"""First and one past the last token, and what gives loss and coefficients [T] of their values."""


@dataclass(frozen=True)
class Head:
    """An ordinary head: a weight, and where its tiles and its gradient go."""

    weight_VH: Tensor
    shape: Shape
    workspace: Workspace
    adds_in_place: bool = False
    """Whether `loss` adds the gradient to the weight's `.grad` itself."""


def logps(hidden_TH: Tensor, head: Head, targets_T: Tensor) -> Tensor:
    """Log-probability of each target [nats], float32 or more; differentiable.

    The logits are computed again in the backward pass.
    """
    return _Logps.apply(hidden_TH, head.weight_VH, targets_T, head, _compute_dtype(head.weight_VH))


def loss(
    hidden_TH: Tensor, head: Head, targets_T: Tensor, groups: Sequence[Group], tile_bytes: int
) -> Tensor:
    """The sum of the groups' losses; its gradients are computed on the way forward.

    Args:
        groups: cover the tokens in order; each stands alone.
        tile_bytes: a group whose logits take more has them computed twice.
    """
    plan = _Plan(head, _compute_dtype(head.weight_VH), tuple(groups), tile_bytes)
    return _Loss.apply(hidden_TH, head.weight_VH, targets_T, plan)


@dataclass(frozen=True)
class _Plan:
    head: Head
    dtype: torch.dtype
    groups: tuple[Group, ...]
    tile_bytes: int


class _Logps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, dtype: torch.dtype
    ) -> Tensor:
        with head.workspace.borrowed() as space, _full_precision(hidden):
            tiles = _Tiles(hidden, weight, dtype, head, space)
            values, lse = _values(tiles, targets, (0, len(targets)))
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.head, ctx.dtype = head, dtype
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, targets, lse = ctx.saved_tensors
        with ctx.head.workspace.borrowed() as space:
            tiles = _Tiles(hidden, weight, ctx.dtype, ctx.head, space, ctx.needs_input_grad)
            _recompute(tiles, targets, (0, len(targets)), (lse, grads[0]))
        return (*tiles.gradients(), None, None, None)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, plan: _Plan) -> Tensor:
        with plan.head.workspace.borrowed() as space, _full_precision(hidden):
            tiles = _Tiles(hidden, weight, plan.dtype, plan.head, space, ctx.needs_input_grad)
            tiles.into = weight if plan.head.adds_in_place else None
            losses = [_group(tiles, targets, group, plan.tile_bytes) for group in plan.groups]
        ctx.gradients = tiles.gradients()
        ctx.in_place = tiles.into is not None
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The upstream gradient is that of a sum: only its value counts."""
        found, ctx.gradients = ctx.gradients, None
        if grads[0] != 1:
            assert not ctx.in_place, "the weight's gradient was added for a loss that counts whole"
            found = tuple(None if g is None else g.mul_(grads[0].to(g.dtype)) for g in found)
        return (*found, None, None)


class _Tiles:
    """Hidden states and head weight in the dtype to compute in; the gradients add up here."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        head: Head,
        workspace: Workspace,
        needed: Sequence[bool] = (False, False),
    ) -> None:
        self.hidden = hidden.detach().to(dtype)
        self.weight = workspace.cast(weight, dtype)
        self.shape, self._workspace = head.shape, workspace
        self.rows_per_tile = tile_sizes.rows_per_tile(
            len(hidden), tile_sizes.most_rows(self.weight)
        )
        self._dtypes = (hidden.dtype, weight.dtype)
        self._needs_weight = needed[1]
        self._grad_hidden = torch.empty_like(self.hidden) if needed[0] else None
        self._grad_weight: Tensor | None = None
        self.into: Tensor | None = None
        """The weight to whose `.grad` its gradient is added."""

    def ranges(self, first: int, last: int) -> Iterator[slice]:
        """The tiles of a part of the tokens."""
        for start in range(first, last, self.rows_per_tile):
            yield slice(start, min(last, start + self.rows_per_tile))

    def logits(self, rows: slice, held: Tensor | None = None) -> Tensor:
        """The product for some rows, in memory that the next call without `held` takes again."""
        hidden = self.hidden[rows]
        if held is None:
            held = self.memory(len(hidden))
        return torch.mm(hidden, self.weight.T, out=held)

    def memory(self, rows: int, place: int = 0) -> Tensor:
        """For the logits of so many rows; a tile each has its place."""
        return self._workspace.matrix(f"tile {place}", rows, len(self.weight), self.weight)

    def add(self, rows: slice, slope_CV: Tensor, coefficient_C: Tensor) -> None:
        """Adds `coefficient * slope`, the gradient of the scaled logits of these rows."""
        if self._grad_hidden is not None:
            self._grad_hidden[rows] = (slope_CV @ self.weight) * coefficient_C[:, None]
        if self._needs_weight:
            scaled = (self.hidden[rows] * coefficient_C[:, None]).to(slope_CV.dtype)
            self._add_weight(slope_CV, scaled)

    def _add_weight(self, slope_CV: Tensor, scaled_CH: Tensor) -> None:
        total = self._grad_weight if self.into is None else self.into.grad
        wide = torch.promote_types(
            self._dtypes[1], torch.float32 if self.into is None else self._dtypes[1]
        )
        if total is None:
            total = torch.zeros(self.weight.shape, dtype=wide, device=self.weight.device)
        if slope_CV.dtype == total.dtype:
            total.addmm_(slope_CV.T, scaled_CH)
        elif _adds_wide(slope_CV, total):
            torch.addmm(total, slope_CV.T, scaled_CH, out_dtype=total.dtype, out=total)
        else:
            product = self._workspace.matrix("product", total.shape[0], total.shape[1], self.weight)
            add_to(total, torch.mm(slope_CV.T, scaled_CH, out=product))
        if self.into is None:
            self._grad_weight = total
        else:
            self.into.grad = total

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """In the dtypes of the inputs; None where not needed, or added already."""
        found = (self._grad_hidden, self._grad_weight)
        return tuple(  # type: ignore[return-value]
            None if g is None else g.to(dtype) for g, dtype in zip(found, self._dtypes, strict=True)
        )


def _group(tiles: _Tiles, targets: Tensor, group: Group, tile_bytes: int) -> Tensor:
    """Loss of a group; its gradients are added."""
    first, last, judge = group
    if last == first:
        return judge(_empty(tiles.hidden))[0]
    if (last - first) * tiles.weight.shape[0] * tiles.weight.element_size() > tile_bytes:
        values, lse = _values(tiles, targets, (first, last))
        loss, coefficient = judge(values)
        _recompute(tiles, targets, (first, last), (lse, coefficient))
        return loss
    ranges = list(tiles.ranges(first, last))
    held, values_parts, slopes = [], [], []
    for place, rows in enumerate(ranges):
        held.append(tiles.logits(rows, tiles.memory(rows.stop - rows.start, place)))
        slopes.append(shape_(held[-1], tiles.shape))
        values_parts.append(softmax_(held[-1], targets[rows])[0])
    loss, coefficient = judge(torch.cat(values_parts))
    for rows, probabilities, slope in zip(ranges, held, slopes, strict=True):
        to_slope_(probabilities, targets[rows], slope)
        tiles.add(rows, probabilities, -tiles.shape.scale * _own(coefficient, rows, first))
    return loss


def _values(tiles: _Tiles, targets: Tensor, part: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities and log-sum-exps of a part of the tokens, tile by tile."""
    values, lses = [_empty(tiles.hidden)], [_empty(tiles.hidden)]
    for rows in tiles.ranges(*part):
        logits = tiles.logits(rows)
        shape_(logits, tiles.shape)
        value, lse = log_sum_exp(logits, targets[rows])
        values.append(value)
        lses.append(lse)
        del logits
    return torch.cat(values), torch.cat(lses)


def _recompute(
    tiles: _Tiles, targets: Tensor, part: tuple[int, int], known: tuple[Tensor, Tensor]
) -> None:
    """Adds the gradients of a part of the tokens, from log-sum-exps and coefficients of it."""
    for rows in tiles.ranges(*part):
        lse, coefficient = (_own(tensor, rows, part[0]) for tensor in known)
        logits = tiles.logits(rows)
        slope = shape_(logits, tiles.shape)
        exponentiate_(logits, lse)
        to_slope_(logits, targets[rows], slope)
        tiles.add(rows, logits, -tiles.shape.scale * coefficient)
        del logits, slope  # before the next tile's take their place


def _adds_wide(part: Tensor, total: Tensor) -> bool:
    """Whether a product in half precision can be added to a float32 total as it is computed."""
    if part.device.type != "cuda" or total.dtype != torch.float32:
        return False
    return "dtype_out" in torch.ops.aten.addmm.overloads()


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _own(tensor: Tensor, rows: slice, first: int) -> Tensor:
    """These rows of a tensor that begins at row `first`."""
    return tensor[rows.start - first : rows.stop - first]


def _empty(like: Tensor) -> Tensor:
    return like.new_zeros(0, dtype=torch.promote_types(like.dtype, torch.float32))


def _compute_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
