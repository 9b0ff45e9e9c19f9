"""Which tokens of a pair differ between its two sides."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from rapidfuzz.distance import Levenshtein

from penchant.errors import ObjectiveError
from penchant.types import PairMarks

Alignment = Literal["levenshtein", "difflib"]


def mark(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    alignment: Alignment = "levenshtein",
    ignored_ids: AbstractSet[int] = frozenset(),
) -> PairMarks:
    """Aligns two responses (their token ids, no prompt, no padding) and marks what differs.

    Args:
        alignment: "levenshtein" has the fewest edits; "difflib" matches longest blocks first.
        ignored_ids: tokens that are never marked, as stop words are.
    Returns:
        One flag per token of each side.
    Raises:
        ObjectiveError: another alignment.
    """
    # A tensor's elements are equal only to themselves where they are hashed, as aligning does.
    chosen, rejected = [int(i) for i in chosen_ids], [int(i) for i in rejected_ids]
    marked_chosen, marked_rejected = [False] * len(chosen), [False] * len(rejected)
    for tag, start, stop, chosen_start, chosen_stop in _edits(rejected, chosen, alignment):
        if tag != "equal":
            for place in range(start, stop):
                marked_rejected[place] = rejected[place] not in ignored_ids
            for place in range(chosen_start, chosen_stop):
                marked_chosen[place] = chosen[place] not in ignored_ids
    return PairMarks(tuple(marked_chosen), tuple(marked_rejected))


def stop_word_ids(tokenizer: Any, words: str | Sequence[str] = "english") -> frozenset[int]:
    """Ids of the stop words that are one token to a tokenizer.

    A word counts as it is and capitalised, at the start of a text and behind a space. In a
    tokenizer of bytes or characters the words "a" and "i" are letters: give "none" there.

    Args:
        words: a language of the `stopwords` package, "none", or the words themselves.
    Raises:
        ObjectiveError: a language that the package does not have.
    """
    forms = {form for word in list_words(words) for form in (word, word.capitalize())}
    texts = sorted(space + form for form in forms for space in ("", " "))
    if not texts:
        return frozenset()
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    single = {ids[0] for ids in encoded if len(ids) == 1}
    # A word-level tokenizer has one id for every unknown word; that is no stop word.
    return frozenset(single - {tokenizer.unk_token_id})


def _edits(
    source: list[int], target: list[int], alignment: str
) -> Iterable[tuple[str, int, int, int, int]]:
    """Runs (tag, source start and stop, target start and stop) that turn source into target."""
    if alignment == "levenshtein":
        return (tuple(op) for op in Levenshtein.opcodes(source, target))  # type: ignore[misc]
    if alignment == "difflib":
        # autojunk would drop frequent tokens as anchors in responses of 200 tokens or more.
        return difflib.SequenceMatcher(None, source, target, autojunk=False).get_opcodes()
    raise ObjectiveError(f"alignment must be 'levenshtein' or 'difflib', got {alignment!r}")


def list_words(words: Any) -> list[str]:
    """The stop words that a setting means: a language, "none", or the words themselves.

    Raises ObjectiveError where it means nothing.
    """
    if not isinstance(words, str):
        if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
            raise ObjectiveError(f"stop_words must be a language, none or a list, got {words!r}")
        return [word for word in words if word]
    if words == "none":
        return []
    import stopwords

    try:
        listed = stopwords.get_stopwords(words)
    except stopwords.LanguageNotAvailable:
        languages = ", ".join(sorted(stopwords.languages()))
        raise ObjectiveError(
            f"no stop words for {words!r}; give a list of words, none, or one of {languages}"
        ) from None
    return [word for word in listed if word]
