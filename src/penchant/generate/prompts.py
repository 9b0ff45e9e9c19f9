"""A prompt as the model reads it before it answers: the same token ids as in training."""

from __future__ import annotations

from typing import Any

from penchant.errors import DataError
from penchant.types import Text


def prompt_ids(prompt: Text, tokenizer: Any) -> list[int]:
    """Token ids of a prompt.

    Messages go through the tokenizer's chat template with its generation prompt, and nothing is
    added. A plain string gets the tokenizer's BOS, where it has one, and no EOS.
    Raises DataError for messages where the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        bos = tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    if tokenizer.chat_template is None:
        raise DataError(
            "the prompt holds messages, but the tokenizer has no chat template; "
            "set tokenizer.chat_template, or give the prompt as a plain string"
        )
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids
