"""Prompts read before an answer are the prompts of training."""

from __future__ import annotations

from typing import Any

import pytest

from penchant.errors import DataError
from penchant.generate import prompt_ids

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}w9{% endif %}"
)


def test_a_string_gets_bos_where_there_is_one_and_no_eos(tokenizer: Any) -> None:
    assert prompt_ids("w4 w5", tokenizer) == [4, 5]
    tokenizer.bos_token = "<pad>"
    assert prompt_ids("w4 w5", tokenizer) == [0, 4, 5]
    assert prompt_ids("<pad> w4", tokenizer) == [0, 4]


def test_messages_get_the_generation_prompt(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no chat template"):
        prompt_ids(({"role": "w7", "content": "w4"},), tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert prompt_ids(({"role": "w7", "content": "w4"},), tokenizer) == [7, 4, 2, 9]


def test_messages_give_the_prompt_of_the_training_tree(tokenizer: Any) -> None:
    from penchant import data
    from penchant.types import Comparison

    tokenizer.chat_template = TEMPLATE
    prompt = ({"role": "w7", "content": "w4 w5"},)
    answers = tuple(({"role": "assistant", "content": text},) for text in ("w6", "w8"))
    tokenizer.chat_template = TEMPLATE.replace("{{ m.role }}", "w9")
    comparison = Comparison(row_id="r:1", prompt=prompt, responses=answers, pairs=((0, 1),))
    tree = data.tree(comparison, tokenizer)
    # The template's generation prompt is how every turn begins.
    assert tree.prompt_ids == tuple(prompt_ids(prompt, tokenizer))
