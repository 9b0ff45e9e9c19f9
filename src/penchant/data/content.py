"""What rows say, compared with one another: duplicates, contradictions, train against evaluation.

Compared by digest, so that memory holds sixteen bytes a text and not the text.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penchant.data.fields import plain_text
from penchant.types import Comparison, Text

Digest = bytes
Pair = tuple[int, int]


@dataclass
class Repeats:
    """Rows and pairs that occur more than once, or against each other."""

    duplicate_rows: int = 0
    """Rows that say the same as an earlier one: prompt, responses, and which is chosen."""
    distinct_prompts: int = 0
    rows_with_known_prompt: int = 0
    """Rows whose prompt an earlier row has too; usual where a prompt has several pairs."""
    most_rows_of_a_prompt: int = 0
    contradictory_pairs: int = 0
    """Pairs (A over B) of which the same prompt also has the opposite (B over A); both counted."""
    of_duplicates: list[str] = field(default_factory=list)
    """Row ids of the first duplicates, each with the row that it repeats."""
    of_contradictions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Overlap:
    """What evaluation shares with training."""

    rows: int
    """Rows of evaluation that are in training: same prompt, responses and pair."""
    prompts: int
    """Rows of evaluation whose prompt is in training."""
    of: int
    """Rows of evaluation."""
    examples: list[str] = field(default_factory=list)
    """Row ids of evaluation, the shared rows first."""


def words(row: Comparison) -> str:
    """All that a row says, for excerpts; nothing where its texts were not kept."""
    texts = [text for text in (row.prompt, *row.responses) if not isinstance(text, Digested)]
    return " | ".join(map(plain_text, texts))


class Digested(str):
    """In place of a text that is not kept: equal where the texts are, in words and in roles."""

    __slots__ = ("words",)
    words: Digest


def without_texts(row: Comparison) -> Comparison:
    """The row as far as pairs are planned and rows compared; what the model sees is gone."""
    prompt, *responses = map(_digested, (row.prompt, *row.responses))
    return replace(row, prompt=prompt, responses=tuple(responses), template_kwargs=_NOTHING)


_NOTHING: dict[str, Any] = {}


def _digested(text: Text) -> Digested:
    words = digest(text)
    if isinstance(text, str):
        key = words
    else:
        roles = "\n".join(f"{turn['role']} {len(turn['content'])}" for turn in text)
        salt = hashlib.blake2b(roles.encode("utf-8", "surrogatepass"), digest_size=16)
        key = hashlib.blake2b(words, key=salt.digest(), digest_size=16).digest()
    made = Digested(key.decode("latin-1"))
    made.words = words
    return made


def digest(text: Text) -> Digest:
    """Equal for texts with equal words; roles play no part."""
    if isinstance(text, Digested):
        return text.words
    content = plain_text(text).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def repeats(rows: Iterable[tuple[Comparison, Sequence[Pair]]], num_examples: int) -> Repeats:
    """Counts over rows and the pairs that they are used for."""
    found = Repeats()
    # Digests one after another as keys: a tuple of them takes three times the memory.
    first_row: dict[Digest, str] = {}
    prompts: Counter[Digest] = Counter()
    directions = _Directions()
    for row, pairs in rows:
        prompt = digest(row.prompt)
        responses = [digest(response) for response in row.responses]
        prompts[prompt] += 1
        key = _joined(prompt, *responses, repr(tuple(pairs)).encode())
        if key in first_row:
            found.duplicate_rows += 1
            if len(found.of_duplicates) < num_examples:
                found.of_duplicates.append(f"{row.row_id} repeats {first_row[key]}")
        else:
            first_row[key] = row.row_id
        for chosen, rejected in pairs:
            direction = prompt + responses[chosen] + responses[rejected]
            if direction in directions.first:
                directions.more[direction] += 1
            else:
                directions.first[direction] = row.row_id
    _add_contradictions(found, directions, num_examples)
    found.distinct_prompts = len(prompts)
    found.rows_with_known_prompt = prompts.total() - len(prompts)
    found.most_rows_of_a_prompt = max(prompts.values(), default=0)
    return found


@dataclass
class _Directions:
    """Rows by prompt, chosen and rejected: three digests in one."""

    first: dict[Digest, str] = field(default_factory=dict)
    more: Counter[Digest] = field(default_factory=Counter)
    """Further rows; few have any."""


def _joined(*digests: Digest) -> Digest:
    return hashlib.blake2b(b"".join(digests), digest_size=16).digest()


def _add_contradictions(found: Repeats, directions: _Directions, num_examples: int) -> None:
    for direction, row_id in directions.first.items():
        prompt, chosen, rejected = (direction[place : place + 16] for place in (0, 16, 32))
        other = directions.first.get(prompt + rejected + chosen)
        if other is None or chosen == rejected:
            continue
        found.contradictory_pairs += 1 + directions.more[direction]
        if chosen < rejected and len(found.of_contradictions) < num_examples:
            found.of_contradictions.append(f"{row_id} against {other}")


def overlap(
    train: Iterable[Comparison], evaluation: Sequence[Comparison], num_examples: int = 3
) -> Overlap:
    """Rows and prompts of evaluation that training has too."""
    rows: set[Any] = set()
    prompts: set[Digest] = set()
    for row in train:
        key = _row_key(row)
        rows.add(key)
        prompts.add(key[0])
    same_row, same_prompt = [], []
    for row in evaluation:
        key = _row_key(row)
        if key in rows:
            same_row.append(row.row_id)
        elif key[0] in prompts:
            same_prompt.append(row.row_id)
    examples = [*same_row, *same_prompt][:num_examples]
    both = len(same_row) + len(same_prompt)
    return Overlap(len(same_row), both, len(evaluation), examples)


def _row_key(row: Comparison) -> tuple[Digest, Any, Any]:
    return digest(row.prompt), tuple(map(digest, row.responses)), row.pairs


def special_texts(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the tokenizer's special tokens written out in a text; None where it has none."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {str(token) for token in added if token.special}
    names |= {str(name) for name in tokenizer.all_special_tokens}
    names = {name for name in names if len(name) > 1}
    return re.compile("|".join(map(re.escape, sorted(names)))) if names else None


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokenizer's special tokens, of those too that no role names."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    return frozenset({*tokenizer.all_special_ids, *(id for id, token in added if token.special)})


def special_in(row: Comparison, pattern: re.Pattern[str]) -> str | None:
    """The first special token that the words of a row hold."""
    for text in (row.prompt, *row.responses):
        found = pattern.search(plain_text(text))
        if found:
            return found.group()
    return None
