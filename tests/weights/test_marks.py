"""Which tokens of a pair are marked, and which words never are."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from transformers import AutoTokenizer

from penchant import weights
from penchant.errors import ObjectiveError
from tests.shared import shared_folder
from tests.weights.tokenizers import word_tokenizer

IDS = st.lists(st.integers(0, 6), max_size=12)


def _bits(marks: tuple[bool, ...]) -> str:
    return "".join("1" if mark else "." for mark in marks)


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_marks", "rejected_marks"),
    [
        ("the cat sat", "the dog sat", ".1.", ".1."),
        ("the big cat sat", "the cat sat", ".1..", "..."),
        ("the cat sat", "the big cat sat", "...", ".1.."),
        ("a b c", "a b c", "...", "..."),
        ("a b", "c d e", "11", "111"),
        ("a b", "", "11", ""),
        ("", "a", "", "1"),
    ],
)
@pytest.mark.parametrize("alignment", ["levenshtein", "difflib"])
def test_by_hand(
    chosen: str, rejected: str, chosen_marks: str, rejected_marks: str, alignment: Any
) -> None:
    words = sorted({*chosen.split(), *rejected.split()})
    sides = [[words.index(word) for word in text.split()] for text in (chosen, rejected)]
    found = weights.mark(*sides, alignment)
    assert (_bits(found.chosen), _bits(found.rejected)) == (chosen_marks, rejected_marks)


def test_the_two_alignments_differ_where_the_longest_block_is_not_the_best() -> None:
    # 5 edits in place keep 1 and 3; the longest block 4 5 leaves nothing to align before it.
    chosen, rejected = [1, 2, 3, 4, 5], [4, 5, 1, 6, 3, 7, 8]
    levenshtein = weights.mark(chosen, rejected, "levenshtein")
    blocks = weights.mark(chosen, rejected, "difflib")
    assert (_bits(levenshtein.chosen), _bits(blocks.chosen)) == (".1.11", "111..")
    assert (_bits(levenshtein.rejected), _bits(blocks.rejected)) == ("11.1.11", "..11111")


@pytest.mark.parametrize("alignment", ["levenshtein", "difflib"])
def test_ids_may_be_a_tensor(alignment: Any) -> None:
    chosen, rejected = [1, 2, 3, 9], [1, 3, 4]
    found = weights.mark(
        torch.tensor(chosen),  # type: ignore[arg-type]
        torch.tensor(rejected),  # type: ignore[arg-type]
        alignment,
        frozenset({9}),
    )
    assert found == weights.mark(chosen, rejected, alignment, frozenset({9}))
    assert (_bits(found.chosen), _bits(found.rejected)) == (".1..", "..1")


def test_ignored_tokens_are_not_marked_on_either_side() -> None:
    found = weights.mark([1, 7, 2], [1, 8, 3], ignored_ids=frozenset({7, 3}))
    assert (_bits(found.chosen), _bits(found.rejected)) == ("..1", ".1.")


@given(chosen=IDS, rejected=IDS)
def test_unmarked_tokens_are_a_common_subsequence_and_marks_the_fewest(
    chosen: list[int], rejected: list[int]
) -> None:
    found = weights.mark(chosen, rejected)
    kept = [i for i, mark in zip(chosen, found.chosen, strict=True) if not mark]
    assert kept == [i for i, mark in zip(rejected, found.rejected, strict=True) if not mark]
    edits = max(sum(found.chosen), sum(found.rejected))
    assert edits <= Levenshtein.distance(rejected, chosen)


def test_long_responses_keep_their_frequent_tokens_as_anchors() -> None:
    """difflib's default drops a token seen often in 200 tokens or more, and marks what is equal."""
    rejected = random.Random(0).choices(range(10), k=300)
    chosen = [*rejected[:100], 99, *rejected[100:]]
    found = weights.mark(chosen, rejected, "difflib")
    assert sum(found.chosen) == 1 and sum(found.rejected) == 0


def test_unknown_alignment() -> None:
    with pytest.raises(ObjectiveError, match="'levenshtein' or 'difflib', got 'lcs'"):
        weights.mark([1], [2], "lcs")


def test_stop_words_of_a_real_tokenizer() -> None:
    """With and without their space, small and capital; none that are more than one token."""
    tokenizer = AutoTokenizer.from_pretrained(shared_folder() / "data" / "tokenizer_gpt2")
    ids = weights.stop_word_ids(tokenizer)
    words = set(tokenizer.convert_ids_to_tokens(sorted(ids)))
    assert {"the", "Ġthe", "The", "ĠThe", "Ġand", "ĠI", "Ġyou"} <= words
    assert not {"Ġcat", "cat", "Ġ", "Ġn", "'t"} & words
    assert all(" " not in tokenizer.decode([i]).strip() for i in ids)


def test_stop_words_can_be_chosen() -> None:
    tokenizer = word_tokenizer("the cat Cat dog and")
    by_word = tokenizer.convert_tokens_to_ids
    assert weights.stop_word_ids(tokenizer) == {by_word("the"), by_word("and")}
    assert weights.stop_word_ids(tokenizer, ["cat"]) == {by_word("cat"), by_word("Cat")}
    for none in ("none", (), []):
        assert weights.stop_word_ids(tokenizer, none) == frozenset()


def test_unknown_words_are_not_stop_words() -> None:
    """Most English stop words are unknown to this tokenizer, and all unknown words are one id."""
    tokenizer = word_tokenizer("cat dog")
    assert weights.stop_word_ids(tokenizer) == frozenset()


def test_unknown_language() -> None:
    with pytest.raises(ObjectiveError, match=r"no stop words for 'klingon'.*english"):
        weights.stop_word_ids(word_tokenizer("cat"), "klingon")
