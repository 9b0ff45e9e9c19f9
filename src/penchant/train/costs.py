"""What a model costs, reckoned from its sizes: weights, operations, bytes per token.

These figures choose the token budget, and stand in where a probe cannot measure (`probe.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from penchant.data.pack import floor_length
from penchant.engine.compiled import decoder_layers
from penchant.models.config import ModelConfig
from penchant.train.config import TrainingConfig
from penchant.train.policy import random_policy

if TYPE_CHECKING:
    from penchant.train.fit import Job

EFFICIENCY = {("cpu", torch.float32): 0.7, ("cpu", torch.float64): 0.7}
"""Part of the rate of a matrix product that a whole step reaches, by device and dtype."""
OTHER_EFFICIENCY = 0.4
CPU_TOKENS = (1024, 4096)
CPU_BYTES = 384 * 2**20
"""On a CPU a micro-batch takes about so much, within these numbers of tokens: more is no faster,
and only small models gain from more than the fewest (docs/log.md)."""
MOST_TOKENS = 32_768
FEWEST_TOKENS = 256
_SHARE = 0.8
"""Part of the free memory that a plan may fill: allocators lose some to fragments."""
_STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "rmsprop": 4, "adafactor": 0}
"""Of the optimiser, per trained weight."""
_QUANTISED = {"4bit": 0.6, "8bit": 1.1}
"""Bytes per frozen weight, with its scales."""
_TILE_BYTES = 3 * 512 * 2**20
"""Of the packed layout's head: tiles and their gradients, whatever the batch."""


@final
@dataclass(frozen=True)
class ModelSize:
    """A model's sizes, counted without storage."""

    parameters: int
    trained: int
    """Parameters that an update changes."""
    layers: int
    layer_stored: float
    """Parameters of a mean layer."""
    layer_trained: float
    layer_parameters: int
    """Weights of a mean layer that a token meets: of a mixture's experts only the chosen ones."""
    layers_are_alike: bool
    hidden: int
    intermediate: int
    """Width of a layer's feed-forward part, as one token meets it."""
    attention: int
    """Heads times their width."""
    vocabulary: int

    @classmethod
    def of_job(cls, config: Any, job: Job) -> ModelSize:
        """Of a policy, or of a reward model, which predicts no tokens unless its loss asks."""
        if job.tasks is None:
            return cls.of(config, job.model)
        size = cls.of(config, job.model, scores=True)
        return size if "lm_nll_P" in job.objective.uses else replace(size, vocabulary=1)

    @classmethod
    def of(cls, config: Any, model: ModelConfig, *, scores: bool = False) -> ModelSize:
        """Of a model's config and what a recipe makes of it (an adapter, a reward model)."""
        text = config.get_text_config()
        with torch.device("meta"):
            built = random_policy(config, model, torch.float32, scores=scores)
        layers = decoder_layers(built, text.num_hidden_layers)
        weights = [p for layer in layers for p in layer.parameters()]
        met = [_met(layer, text) for layer in layers]
        number = max(1, len(layers))
        return cls(
            parameters=sum(p.numel() for p in built.parameters()),
            trained=sum(p.numel() for p in built.parameters() if p.requires_grad),
            layers=text.num_hidden_layers,
            layer_stored=sum(p.numel() for p in weights) / number,
            layer_trained=sum(p.numel() for p in weights if p.requires_grad) / number,
            layer_parameters=round(sum(met) / number),
            layers_are_alike=len(set(met)) == 1,
            hidden=text.hidden_size,
            intermediate=_intermediate(text),
            attention=_attention(text),
            vocabulary=text.vocab_size,
        )

    def with_layers(self, layers: int) -> ModelSize:
        """The same model with fewer layers."""
        less = self.layers - layers
        return replace(
            self,
            layers=layers,
            parameters=round(self.parameters - less * self.layer_stored),
            trained=round(self.trained - less * self.layer_trained),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model of a size is trained: what its memory depends on besides the batch."""

    size: ModelSize
    padded: bool
    """Plain layout."""
    dtype: torch.dtype
    checkpointing: bool
    optimizer: str
    shards: int = 1
    """Processes over which weights are split."""
    quantization: str | None = None

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        training: TrainingConfig,
        size: ModelSize,
        dtype: torch.dtype,
        *,
        padded: bool,
        shards: int = 1,
    ) -> Setting:
        """As a recipe says."""
        return cls(
            size=size,
            padded=padded,
            dtype=dtype,
            checkpointing=model.gradient_checkpointing,
            optimizer=training.optimizer,
            shards=shards,
            quantization=model.quantization,
        )

    @property
    def is_adapter(self) -> bool:
        """Whether most weights are frozen."""
        return self.size.trained < self.size.parameters

    def resting_bytes(self) -> int:
        """Weights, gradients and the optimiser's state."""
        stored = self.dtype.itemsize if self.is_adapter else max(4, self.dtype.itemsize)
        weights = _QUANTISED.get(self.quantization or "", stored) * self.size.parameters
        trained = (4 + _STATE_BYTES[self.optimizer]) * self.size.trained
        return round((weights + trained) / self.shards)

    def token_bytes(self) -> float:
        """Of activations per token that a micro-batch computes.

        Of a layer's values those are kept that its backward pass reads: around the norms,
        queries, keys, values, and four widths of the feed-forward part.
        """
        # Under autocast half of the values are as wide as the weights, half are half as wide.
        size, element = self.size, max(3, self.dtype.itemsize)
        layer = element * (10 * size.hidden + 4 * size.attention + 4 * size.intermediate)
        layers = size.layers * layer
        if self.checkpointing:
            layers = size.layers * 4 * size.hidden + layer
        logits = (3 * max(4, element) + (element == 3) * 2) * size.vocabulary * self.padded
        return layers + 8 * element * size.hidden + logits

    def peak_bytes(self, tokens: int) -> int:
        """Most memory with so many tokens in the largest micro-batch."""
        tiled = not self.padded and self.size.vocabulary > 1
        head = _TILE_BYTES + 8 * self.size.vocabulary * self.size.hidden if tiled else 0
        return round(self.resting_bytes() + head + tokens * self.token_bytes())

    def operations(self, tokens: float, reach: float, predictions: float) -> tuple[float, float]:
        """Of a forward pass: of all layers, and of the head.

        Args:
            tokens: computed, padding included.
            reach: query-key pairs.
            predictions: tokens that the head scores.
        """
        size = self.size
        layer = 2 * size.layer_parameters * tokens + 4 * size.attention * reach
        return size.layers * layer, 2 * size.vocabulary * size.hidden * predictions


def token_budget(
    training: TrainingConfig, setting: Setting, free: int, device: torch.device
) -> int:
    """Tokens per micro-batch, padding included: the recipe's, or what memory allows."""
    if training.token_budget != "auto":
        return int(training.token_budget)
    return auto_token_budget(setting, free, device)


def auto_token_budget(setting: Setting, free: int, device: torch.device) -> int:
    """Tokens of a micro-batch that fit into free memory, within what is of use on a device.

    A short list of values, so that a little more or less free memory changes nothing.

    Args:
        free: bytes, before the model is loaded.
    """
    room = _SHARE * free - setting.peak_bytes(0)
    most = MOST_TOKENS
    if device.type == "cpu":
        fewest, most = CPU_TOKENS
        most = max(fewest, min(most, int(CPU_BYTES / setting.token_bytes())))
    fitting = max(0, int(room / setting.token_bytes()))
    return floor_length(max(FEWEST_TOKENS, min(most, fitting)))


def matmul_rate(device: torch.device, dtype: torch.dtype, edge: int = 1024) -> float:
    """Floating-point operations per second of a matrix product of that edge."""
    a = torch.ones(edge, edge, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * edge**3 / best


def _met(layer: nn.Module, config: Any) -> int:
    """Matrix weights of a layer that one token meets."""
    total = 0.0
    for name, parameter in layer.named_parameters():
        if parameter.ndim >= 2:
            total += parameter.numel() * (_chosen(config) if "experts" in name else 1.0)
    return round(total)


def _chosen(config: Any) -> float:
    """The part of a mixture's experts that one token meets."""
    experts = _number(config, "num_experts", "num_local_experts", "n_routed_experts") or 1
    return min(1.0, (_number(config, "num_experts_per_tok") or 1) / experts)


def _attention(config: Any) -> int:
    heads = _number(config, "num_attention_heads")
    return heads * (_number(config, "head_dim") or config.hidden_size // max(1, heads))


def _intermediate(config: Any) -> int:
    width = _number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * config.hidden_size
    experts = _number(config, "num_experts_per_tok")
    return experts * (_number(config, "moe_intermediate_size") or width) if experts else width


def _number(config: Any, *names: str) -> int:
    """The first of a config's keys that it has; 0 without any; the most of layers that differ."""
    found = next((value for value in (getattr(config, n, None) for n in names) if value), 0)
    return int(max(found)) if isinstance(found, (list, tuple)) else int(found)
