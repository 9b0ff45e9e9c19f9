"""Tiny real parts for tests: a byte-level tokenizer, random models, random trees."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from penchant.models.new import new_model, ready_tokenizer
from penchant.types import TokenTree

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 256


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, ChatML, with a padding token of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=None)
    return ready_tokenizer(fast, CHATML)


def tiny_model(architecture: str = "llama", seed: int = 0, **sizes: Any) -> Any:
    """Two layers of width 32 around the tiny tokenizer, in evaluation mode."""
    wanted = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if architecture in ("gpt2", "bloom", "mpt"):
        del wanted["intermediate_size"]
    return new_model(_tokenizer(), architecture, wanted | sizes, seed=seed).eval()


def random_trees(
    num: int, seed: int = 0, *, longest: int = 12, num_responses: int = 2, scored: bool = True
) -> list[TokenTree]:
    """Trees of random tokens and lengths from 1; one pair (0, 1) each."""
    rng = random.Random(seed)
    trees = []
    for place in range(num):
        lengths = [rng.randint(1, longest) for _ in range(num_responses)]
        trees.append(
            TokenTree(
                row_id=f"random:{place + 1}",
                prompt_ids=_ids(rng, rng.randint(1, longest)),
                response_ids=tuple(_ids(rng, n) for n in lengths),
                response_masks=tuple((True,) * n for n in lengths),
                pairs_P2=((0, 1),) if num_responses > 1 else (),
                scores_R=tuple(rng.uniform(1, 10) for _ in lengths) if scored else None,
            )
        )
    return trees


def naive_logps(model: Any, tree: TokenTree, response: int) -> torch.Tensor:
    """Log-probabilities of one response's scored tokens, one unpadded row, full log-softmax."""
    ids = [*tree.prompt_ids, *tree.response_ids[response]]
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    start = len(tree.prompt_ids)
    values = [
        logits[start + place - 1].log_softmax(-1)[token]
        for place, (token, scored) in enumerate(
            zip(tree.response_ids[response], tree.response_masks[response], strict=True)
        )
        if scored
    ]
    return torch.stack(values)


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def _ids(rng: random.Random, num: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(num))
