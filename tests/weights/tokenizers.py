"""A tokenizer of whole words."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: str) -> PreTrainedTokenizerFast:
    """Knows these words, in this order from id 1; everything else is id 0."""
    vocabulary = {"[UNK]": 0} | {word: i for i, word in enumerate(words.split(), start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
