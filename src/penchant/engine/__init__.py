"""The engine: log-probabilities and scores of token trees, however a batch is laid out.

Past this room nobody knows about rows, padding or packing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from penchant.engine import attention_blocks, packed, plain, rewards, self_check
from penchant.engine.heads import BackwardPass, Statistics, causal_of, vocabulary_of
from penchant.engine.rewards import RewardOutput
from penchant.engine.workspace import Workspace
from penchant.errors import ModelError
from penchant.types import TokenLogps, TokenTree

Layout = Literal["auto", "packed", "plain"]
TreeLoss = Callable[[Sequence[TokenTree], TokenLogps], Tensor]


@dataclass(frozen=True)
class Engine:
    """A model made ready; build it with `prepare`."""

    model: Any
    layout: Literal["packed", "plain"]
    reason: str
    """Why this layout."""
    autocast_dtype: torch.dtype | None = None
    _workspace: Workspace = field(default_factory=Workspace, repr=False, compare=False)

    @property
    def padded(self) -> bool:
        """Whether a batch costs rows x longest row; otherwise it costs every token once."""
        return self.layout == "plain"

    def logps(
        self, trees: Sequence[TokenTree], *, entropy: bool = False, kl_to: Engine | None = None
    ) -> TokenLogps:
        """Log-probability of each scored response token of the trees; differentiable.

        Args:
            entropy: also each token's `entropy_T` [nats].
            kl_to: also each token's `token_kl_T` from this engine's distribution [nats]; both
                must have one layout and one vocabulary.
        """
        statistics = self._statistics(entropy, kl_to)
        with self.precision():
            if self._runs_packed():
                return packed.token_logps(self.model, trees, self._workspace, statistics)
            return plain.token_logps(self.model, trees, statistics)

    def rewards(
        self,
        trees: Sequence[TokenTree],
        *,
        with_logps: bool = False,
        with_auxiliary: bool = False,
    ) -> RewardOutput:
        """A reward model's score of each response, and what its head saw; differentiable.

        Args:
            with_logps: also the log-probabilities, of a model that was loaded with its language
                head; both come from one forward pass.
            with_auxiliary: also a mixture of experts' load-balancing loss, where its config asks
                for router logits.
        Raises:
            ModelError: the model has no head `score`, or no language head where one is needed.
        """
        routed = with_auxiliary and self._asks_for_router_logits()
        with self.precision():
            if self._runs_packed():
                return rewards.packed_rewards(
                    self.model, trees, self._workspace, with_logps, routed=routed
                )
            return rewards.plain_rewards(self.model, trees, with_logps, routed)

    def scores(self, trees: Sequence[TokenTree]) -> Tensor:
        """A reward model's score of each response, [responses]; differentiable."""
        return self.rewards(trees).scores_R

    def backward(
        self,
        trees: Sequence[TokenTree],
        loss: Callable[[TokenLogps], Tensor],
        *,
        auxiliary_weight: float = 0.0,
        entropy: bool = False,
        kl_to: Engine | None = None,
        differentiable: bool = True,
    ) -> Tensor:
        """Forward, a scalar loss from the log-probabilities, backward; returns it detached.

        Gradients add to the parameters' `.grad`, the same as `loss(logps(trees)).backward()`.

        Args:
            auxiliary_weight: of a mixture of experts' load-balancing loss, where its config asks
                for router logits; it is not part of what is returned.
            entropy, kl_to: what the loss gets besides, as `logps` gives it.
            differentiable: whether the loss may depend on that; if not, it costs less.
        """
        statistics = self._statistics(entropy, kl_to, differentiable)

        def of_trees(_: Sequence[TokenTree], logps: TokenLogps) -> Tensor:
            return loss(logps)

        return self._backward(trees, BackwardPass(of_trees, False, auxiliary_weight, statistics))

    def backward_by_tree(
        self,
        trees: Sequence[TokenTree],
        loss: TreeLoss,
        *,
        auxiliary_weight: float = 0.0,
        entropy: bool = False,
        kl_to: Engine | None = None,
        differentiable: bool = True,
    ) -> Tensor:
        """The same for a loss that is a sum over trees: cheaper, since no logits are recomputed.

        They are where the loss depends on an entropy or a token KL.

        Args:
            loss: of some consecutive trees and their log-probabilities; it is called on parts
                that make up the whole, and what is propagated back and returned is the sum.
        """
        statistics = self._statistics(entropy, kl_to, differentiable)
        return self._backward(trees, BackwardPass(loss, True, auxiliary_weight, statistics))

    def check_kl_to(self, other: Engine) -> None:
        """Raises ModelError where there is no token KL from one model to the other."""
        if other.layout != self.layout:
            raise ModelError(
                f"the token KL needs one layout, but the policy is {self.layout} ({self.reason}) "
                f"and the reference {other.layout} ({other.reason}); use layout='plain' for both"
            )
        sizes = [vocabulary_of(engine.model) for engine in (self, other)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"the token KL needs one vocabulary, but the policy predicts {sizes[0]} tokens "
                f"and the reference {sizes[1]}; name a reference with the policy's vocabulary"
            )

    def _statistics(
        self, entropy: bool, kl_to: Engine | None, differentiable: bool = True
    ) -> Statistics:
        if kl_to is None:
            return Statistics(entropy, differentiable=differentiable)
        self.check_kl_to(kl_to)
        return Statistics(entropy, kl_to.model, kl_to.autocast_dtype, differentiable)

    def _backward(self, trees: Sequence[TokenTree], wanted: BackwardPass) -> Tensor:
        if not self._asks_for_router_logits():
            wanted = replace(wanted, auxiliary_weight=0.0)
        with self.precision():
            if self._runs_packed():
                return packed.backward(self.model, trees, wanted, self._workspace)
            return plain.backward(self.model, trees, wanted)

    def _asks_for_router_logits(self) -> bool:
        return bool(getattr(causal_of(self.model).config, "output_router_logits", False))

    def _runs_packed(self) -> bool:
        """Packed, but for a model that was prepared with its dropout off and has it on now."""
        if self.layout == "plain":
            return False
        return not (self.model.training and self_check.attention_dropout(self.model) > 0)

    def release(self) -> None:
        """Gives back the memory that is kept from one micro-batch to the next (on a CPU)."""
        self._workspace.clear()
        attention_blocks.release()

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Autocast where asked for; around several calls, weights are cast once for all of them.

        No weight may change within it.
        """
        device = next(self.model.parameters()).device.type
        dtype = self.autocast_dtype
        with (
            self._workspace.unchanged(),
            nullcontext() if dtype is None else torch.autocast(device, dtype=dtype),
        ):
            yield


def prepare(model: Any, layout: Layout = "auto", *, dtype: torch.dtype | None = None) -> Engine:
    """An engine for a causal language model or a reward model; may be called again on the same.

    Args:
        layout: "plain" pads every response into a row of its own; "packed" runs each prompt once;
            "auto" is packed wherever a check on two small trees finds it exact.
        dtype: compute in this dtype by autocast (float32 weights stay the masters); default as
            the weights are.
    Raises:
        ModelError: the model cannot be laid out as asked.
    """
    if layout not in ("auto", "packed", "plain"):
        raise ModelError(f"layout={layout!r} is none of 'auto', 'packed' and 'plain'")
    autocast = dtype if dtype in (torch.bfloat16, torch.float16) else None
    if layout == "plain":
        return Engine(model, "plain", "asked for", autocast)
    reason = self_check.why_not_packed(model)
    if reason is None:
        return Engine(model, "packed", self_check.AGREES, autocast)
    if layout == "packed":
        raise ModelError(f"layout='packed' is not possible for this model: {reason}")
    return Engine(model, "plain", reason, autocast)


__all__ = ["Engine", "Layout", "RewardOutput", "TreeLoss", "prepare"]
