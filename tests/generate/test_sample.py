"""Sampling: the same text in any batch, equal to generate() when greedy, ends where it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.errors import DataError
from penchant.generate import Sampling, choose, sample, stop_token_ids

WARM = Sampling(max_new_tokens=24, seed=3)


@pytest.mark.parametrize(
    "sampling",
    [
        WARM,
        Sampling(max_new_tokens=24, temperature=0.7, top_p=0.9, top_k=20, seed=1),
        Sampling(max_new_tokens=24, temperature=0.0),
    ],
    ids=["plain", "filtered", "greedy"],
)
def test_same_text_at_any_batch_size(
    model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Sampling
) -> None:
    alone = sample(model, tokenizer, prompts, sampling, batch_size=1)
    assert sample(model, tokenizer, prompts, sampling, batch_size=7) == alone
    assert sample(model, tokenizer, prompts, sampling, batch_size=64) == alone
    # Rows did leave early and did run to the end, or the batches above met nothing hard.
    assert len({len(answer.ids) for answer in alone}) > 1


def test_greedy_equals_generate(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    ours = sample(model, tokenizer, prompts, Sampling(temperature=0, max_new_tokens=20))
    for prompt, answer in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        assert list(answer.ids) == theirs[0, len(prompt) :].tolist()


def test_the_row_alone_agrees_with_the_batch(
    llama: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = sample(llama, tokenizer, prompts, WARM)
    monkeypatch.setattr(choose, "_TIE", 1e9)  # every choice now counts as close
    assert sample(llama, tokenizer, prompts[:20], WARM) == batched[:20]


def test_exact_ties_fall_the_same_way_in_any_batch(
    llama: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    with torch.no_grad():
        # Each token has a twin with the same logit: float rounding decides every greedy choice.
        llama.lm_head.weight[31:60] = llama.lm_head.weight[2:31]
    greedy = Sampling(temperature=0, max_new_tokens=10)
    alone = sample(llama, tokenizer, prompts, greedy, batch_size=1)
    assert sample(llama, tokenizer, prompts, greedy, batch_size=33) == alone


def test_seeds_differ_and_prompts_differ(llama: Any, tokenizer: Any) -> None:
    same_prompt = [[5, 6, 7]] * 30
    first = sample(llama, tokenizer, same_prompt, WARM)
    assert len({answer.ids for answer in first}) > 15
    other = sample(llama, tokenizer, same_prompt, Sampling(max_new_tokens=24, seed=4))
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 5


def test_ends_at_the_stop_token_or_is_marked_as_cut(
    llama: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    stops = frozenset({1, 2})
    answers = sample(llama, tokenizer, prompts, WARM, stop_ids=stops)
    for answer in answers:
        assert not stops & set(answer.ids[:-1])
        assert answer.is_cut == (answer.ids[-1] not in stops)
        assert len(answer.ids) == 24 if answer.is_cut else len(answer.ids) <= 24
        assert "<" not in answer.text
        # A skipped stop token or padding in the middle would lose words.
        assert len(answer.text.split()) == sum(token > 2 for token in answer.ids)
    assert {answer.is_cut for answer in answers} == {True, False}


def test_reports_every_prompt_once_and_leaves_the_mode_alone(
    llama: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    done: list[int] = []
    llama.train()
    sample(llama, tokenizer, prompts, WARM, batch_size=16, progress=done.append)
    assert sum(done) == len(prompts)
    assert llama.training


def test_no_prompt_is_no_answer_and_an_empty_prompt_an_error(llama: Any, tokenizer: Any) -> None:
    assert sample(llama, tokenizer, [], WARM) == []
    with pytest.raises(DataError, match="prompt 2 has no token"):
        sample(llama, tokenizer, [[5], []], WARM)


def test_bf16_runs(llama: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    answers = sample(llama.bfloat16(), tokenizer, prompts, WARM)
    assert all(1 <= len(answer.ids) <= 24 for answer in answers)


def test_stop_tokens_are_those_of_model_tokenizer_and_template(llama: Any, tokenizer: Any) -> None:
    assert stop_token_ids(llama, tokenizer) == {1}
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} <end> {% endfor %}"
    )
    assert stop_token_ids(llama, tokenizer) == {1, 2}
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} w5 {% endfor %}"
    assert stop_token_ids(llama, tokenizer) == {1}
    llama.generation_config.eos_token_id = [7, 8]
    assert stop_token_ids(llama, tokenizer) == {1, 7, 8}
