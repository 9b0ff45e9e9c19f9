"""Seeded sampling with a transformers model: the same text for a prompt in any batch.

The loop keeps a key-value cache, works through prompts of similar length together, and drops rows
from the batch as they finish. What a prompt draws depends on (seed, its number, the step) alone.
In float32 the text is the same at every batch size: where a choice is so close that the rounding
of a larger batch could tip it, the row alone is run again and decides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penchant.errors import DataError
from penchant.generate.choose import Sampling, next_token

Progress = Callable[[int], None]
"""Called with the number of prompts finished since the last call."""


@dataclass(frozen=True)
class Sample:
    """What a model answered to one prompt."""

    ids: tuple[int, ...]
    """New tokens, with the stop token where there is one."""
    text: str
    """The answer without special tokens."""
    is_cut: bool
    """True where `max_new_tokens` came before a stop token."""


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 64,
    stop_ids: frozenset[int] | None = None,
    progress: Progress | None = None,
) -> list[Sample]:
    """One answer per prompt, in the order of the prompts.

    Args:
        prompts: token ids per prompt (`generate.prompt_ids` makes them from text or messages).
        stop_ids: tokens that end an answer; default `stop_token_ids(model, tokenizer)`.
    Raises:
        DataError: a prompt has no token.
    """
    empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise DataError(f"prompt {empty[0] + 1} has no token; nothing can be continued from it")
    stops = stop_token_ids(model, tokenizer) if stop_ids is None else stop_ids
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: dict[int, list[int]] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = _Batch(model, {row: list(prompts[row]) for row in rows}, stops)
                answers |= batch.run(sampling, progress or (lambda _: None))
    finally:
        model.train(was_training)
    ids = [answers[row] for row in range(len(prompts))]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    return [
        Sample(tuple(row), text, row[-1] not in stops) for row, text in zip(ids, texts, strict=True)
    ]


def stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the model's and tokenizer's EOS, the template's end of turn."""
    stops: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config, tokenizer):
        eos = getattr(owner, "eos_token_id", None)
        stops |= {eos} if isinstance(eos, int) else set(eos or ())
    return frozenset(stops | _end_of_turn(tokenizer))


def _end_of_turn(tokenizer: Any) -> set[int]:
    """The special token that the chat template prints right after an answer, if there is one."""
    if not getattr(tokenizer, "chat_template", None):
        return set()
    turns = [{"role": "user", "content": "."}, {"role": "assistant", "content": "penchant"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    after = tokenizer(rendered.rpartition("penchant")[2], add_special_tokens=False).input_ids
    return set(after[:1]) & set(tokenizer.all_special_ids)


class _Batch:
    """Rows that are decoded together; finished ones leave."""

    def __init__(self, model: Any, prompts: dict[int, list[int]], stops: frozenset[int]) -> None:
        """`prompts`: token ids by prompt number."""
        self.model, self.prompts = model, prompts
        self.device = next(model.parameters()).device
        self.is_exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
        self.stops_S = torch.tensor(sorted(stops), device=self.device)
        self.prompt_B = torch.tensor(list(prompts), device=self.device)
        self.answers: dict[int, list[int]] = {number: [] for number in prompts}

    def run(self, sampling: Sampling, progress: Progress) -> dict[int, list[int]]:
        """Decodes until every row has ended; new token ids by prompt number."""
        ids_BL, mask_BL = self._left_padded()
        cache, position_B = None, mask_BL.sum(1)
        position_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
        for step in range(sampling.max_new_tokens):
            logits_BV, cache = self._forward(ids_BL, mask_BL, position_BL, cache)
            token_B = self._chosen(logits_BV, sampling, step)
            for number, token in zip(self.prompt_B.tolist(), token_B.tolist(), strict=True):
                self.answers[number].append(token)
            is_open_B = ~torch.isin(token_B, self.stops_S)
            if not is_open_B.all():
                progress(int((~is_open_B).sum()))
                keep = is_open_B.nonzero()[:, 0]
                if not len(keep):
                    return self.answers
                cache.batch_select_indices(keep)
                token_B, position_B, mask_BL = token_B[keep], position_B[keep], mask_BL[keep]
                self.prompt_B = self.prompt_B[keep]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], 1)
            ids_BL, position_BL = token_B[:, None], position_B[:, None]
            position_B = position_B + 1
        progress(len(self.prompt_B))
        return self.answers

    def _left_padded(self) -> tuple[Tensor, Tensor]:
        """Ids and attention mask; a masked token's id does not matter."""
        length = max(map(len, self.prompts.values()))
        ids = [[0] * (length - len(prompt)) + prompt for prompt in self.prompts.values()]
        mask = [
            [0] * (length - len(prompt)) + [1] * len(prompt) for prompt in self.prompts.values()
        ]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _forward(
        self, ids_BL: Tensor, mask_BL: Tensor, position_BL: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Logits of the token after the last, [B, V], and the grown cache."""
        output = self.model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            past_key_values=cache,
            use_cache=True,
            **_last_place(self.model),
            **({"position_ids": position_BL} if _takes(self.model, "position_ids") else {}),
        )
        return output.logits[:, -1], output.past_key_values

    def _chosen(self, logits_BV: Tensor, sampling: Sampling, step: int) -> Tensor:
        """Token ids [B]; a choice that rounding could tip is made by the row alone."""
        token_B, is_close_B = next_token(logits_BV, sampling, self.prompt_B, step)
        if not self.is_exact:
            return token_B
        for row in is_close_B.nonzero()[:, 0].tolist():
            number = int(self.prompt_B[row])
            ids_1L = torch.tensor([self.prompts[number] + self.answers[number]], device=self.device)
            output = self.model(input_ids=ids_1L, use_cache=False, **_last_place(self.model))
            alone, _ = next_token(
                output.logits[:, -1], sampling, self.prompt_B[row : row + 1], step
            )
            token_B[row] = alone[0]
        return token_B


def _last_place(model: Any) -> dict[str, int]:
    """Asks for the logits of the last place only, where the model can be asked."""
    return {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}


def _takes(model: Any, name: str) -> bool:
    """Whether the model's forward has this argument; an adapter hides the signature."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(type(inner).forward).parameters
