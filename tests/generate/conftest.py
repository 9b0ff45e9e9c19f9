"""Small random decoders and a word-level tokenizer, made in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 60
SIZE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
# Wide weights make peaked distributions, as a trained model has.
WIDE = {"initializer_range": 0.4, "eos_token_id": 1, "bos_token_id": None}


def _llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZE, **LAYERS, **WIDE))


def _mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SIZE, **LAYERS, **WIDE, sliding_window=6))


def _gpt2() -> Any:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, **WIDE)
    return GPT2LMHeadModel(config)


@pytest.fixture(params=[_llama, _mistral, _gpt2], ids=["llama", "mistral", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    """Rotary, sliding-window and learned positions."""
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def llama() -> Any:
    """One model where the architecture does not matter."""
    torch.manual_seed(0)
    return _llama().eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Words w0, w1, ...; 0 pads, 1 ends a text, 2 ends a turn."""
    words = {"<pad>": 0, "<eos>": 1, "<end>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": ["<end>"]})
    return fast


@pytest.fixture
def prompts() -> list[list[int]]:
    """70 prompts of 1 to 20 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 21, (70,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
