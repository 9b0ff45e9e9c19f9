"""Rendered text into token ids and masks, in batches.

The whole is tokenised at once, and the response is what follows the prompt's tokens. Where those
are not how the whole begins (a token would span the border), the response's text is tokenised
apart, without an added space, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penchant.data.render import Rendered, Span
from penchant.data.rows import RowError
from penchant.errors import DataError

Ids = list[int]
_SENTINELS = ("\n", "a", "?", "|")


@dataclass
class Tokenised:
    """Token ids of one comparison, before anything is cut."""

    prompt_ids: Ids
    response_ids: list[Ids] = field(default_factory=list)
    masks: list[list[bool]] = field(default_factory=list)
    """Per response token: is it scored?"""
    num_retokenised: int = 0
    """Responses whose text was tokenised apart from the prompt."""
    error: RowError | None = None


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that adds nothing of its own."""

    tokenizer: Any

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids per text."""
        return self._encode(texts)["input_ids"] if texts else []

    def _encode(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )

    def adds_space(self) -> bool:
        """Does it put a space before a text that has none?"""
        first = self.tokenizer.convert_ids_to_tokens(self.ids(["a"])[0][:1])
        return bool(first) and first[0][0] in "▁Ġ"

    def apart(self, suffixes: Sequence[str]) -> list[Ids]:
        """Token ids of texts that continue another one: without an added space."""
        if not suffixes or not self.adds_space():
            return self.ids(suffixes)
        return [self._after_sentinel(suffix) for suffix in suffixes]

    def _after_sentinel(self, suffix: str) -> Ids:
        for sentinel in _SENTINELS:
            head, whole = self.ids([sentinel, sentinel + suffix])
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self.ids([suffix])[0]

    def borders(self, prompts: Sequence[str], ids: Sequence[Ids]) -> list[tuple[int, Ids]]:
        """Per prompt: from where on the wholes need tokenising, and the prompt's ids from there.

        A special token splits a text before anything else happens to it, and the sides are
        tokenised on their own. So what stands before the prompt's last special token has the
        same ids in every whole, and is tokenised once; without one that place is 0.
        """
        specials = self._specials()
        places = [max((prompt.rfind(s) for s in specials), default=-1) for prompt in prompts]
        endings = [prompt[place:] if place > 0 else "" for prompt, place in zip(prompts, places)]
        distinct = [ending for ending in dict.fromkeys(endings) if ending]
        known = dict(zip(distinct, self.ids(distinct), strict=True))
        borders: list[tuple[int, Ids]] = []
        for prompt_ids, place, ending in zip(ids, places, endings, strict=True):
            ending_ids = known.get(ending)
            if ending_ids and prompt_ids[-len(ending_ids) :] == ending_ids:
                borders.append((place, ending_ids))
            else:
                borders.append((0, prompt_ids))
        return borders

    def _specials(self) -> list[str]:
        """Special tokens that are looked for in the text as it was given."""
        if not getattr(self.tokenizer, "is_fast", False):
            return []
        added = self.tokenizer.added_tokens_decoder.values()
        return [str(token) for token in added if token.special and not token.normalized]

    def starts(self, text: str) -> list[int]:
        """First character of each token."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise DataError(
                "a response of several turns needs to know where its tokens begin, and this "
                "tokenizer does not say; use its fast version, or responses of one turn"
            )
        offsets = self._encode([text], return_offsets_mapping=True)["offset_mapping"][0]
        return [start for start, _ in offsets]


def tokenise(rendered: Sequence[Rendered], tokenizer: Any) -> list[Tokenised]:
    """Token ids and masks for a batch of comparisons."""
    encoder = Encoder(tokenizer)
    results, separate = _split_wholes(rendered, encoder)
    for one, result in zip(rendered, results, strict=True):
        _add_masks(one, result, encoder, separate)
        if one.is_plain:
            _add_ends(result, tokenizer)
        if not result.prompt_ids:
            result.error = RowError("empty_prompt", "no token comes before the response")
    return results


def _split_wholes(
    rendered: Sequence[Rendered], encoder: Encoder
) -> tuple[list[Tokenised], set[tuple[int, int]]]:
    """Prompt and response ids; and which responses (row, index) were tokenised apart."""
    prompts = encoder.ids([one.prompt for one in rendered])
    places = encoder.borders([one.prompt for one in rendered], prompts)
    tails = encoder.ids(
        [whole[place:] for one, (place, _) in zip(rendered, places) for whole in one.wholes]
    )
    remaining = iter(tails)
    results: list[Tokenised] = []
    apart: list[tuple[int, int]] = []
    for row, (one, prompt_ids, (_, known)) in enumerate(zip(rendered, prompts, places)):
        result = Tokenised(prompt_ids)
        for index in range(len(one.wholes)):
            tail = next(remaining)
            if tail[: len(known)] != known:
                apart.append((row, index))
            result.response_ids.append(tail[len(known) :])
        results.append(result)
    suffixes = [rendered[row].wholes[index][len(rendered[row].prompt) :] for row, index in apart]
    for (row, index), suffix_ids in zip(apart, encoder.apart(suffixes), strict=True):
        results[row].response_ids[index] = suffix_ids
        results[row].num_retokenised += 1
    return results, {(id(results[row]), index) for row, index in apart}


def _add_masks(
    one: Rendered, result: Tokenised, encoder: Encoder, separate: set[tuple[int, int]]
) -> None:
    for index, (spans, ids) in enumerate(zip(one.scored, result.response_ids, strict=True)):
        if spans is None:
            result.masks.append([True] * len(ids))
            continue
        shift = len(one.prompt) if (id(result), index) in separate else 0
        starts = encoder.starts(one.wholes[index][shift:])
        flags = [_within(start + shift, spans) for start in starts]
        result.masks.append(flags[len(flags) - len(ids) :])


def _within(place: int, spans: Sequence[Span]) -> bool:
    """Does a token that begins here begin in an assistant's turn?"""
    return any(first <= place < end for first, end in spans)


def _add_ends(result: Tokenised, tokenizer: Any) -> None:
    """BOS and EOS, once, where the tokenizer has them."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and result.prompt_ids[:1] != [bos]:
        result.prompt_ids.insert(0, bos)
    for ids, mask in zip(result.response_ids, result.masks, strict=True):
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
            mask.append(True)
