"""Trees that are too long for a scorer, cut response by response.

Training cuts one prompt for all responses of a tree, by the longest of them. A score may not
depend on which other responses stand beside its own, so here each response decides for itself,
and a tree falls into two at most: the responses of the whole prompt, and those of the cut one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from penchant.errors import DataError
from penchant.models.reward_settings import settings_of
from penchant.types import TokenTree

NO_LIMIT = 2**40
_COUNT_PADDING = frozenset(
    {"camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "xlm-roberta"}
    | {"roberta-prelayernorm", "xlm-roberta-xl", "xmod"}
)
"""Encoders whose first token has the position after the padding id's, so that fewer are left."""
_SANE = 10**9
"""Tokenizers without a limit give a huge one."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts are read, where it is not to be as in training; None: as the checkpoint says."""

    chat_template: str | None = None
    """A shipped template's name or a Jinja file."""
    max_length: int | None = None
    """Tokens of prompt and response; of a foreign model the most that it reads."""
    max_prompt_length: int | None = None
    truncate_prompt: Literal["keep_end", "keep_start"] | None = None


@dataclass(frozen=True, kw_only=True)
class Room:
    """How long prompt and response may be, and what of them stays in any case."""

    max_length: int
    """Tokens of prompt and response together."""
    max_prompt_length: int | None = None
    """Of a prompt, where the whole is too long; None: half of max_length."""
    truncate_prompt: Literal["keep_end", "keep_start"] = "keep_end"
    bos_id: int | None = None
    """A prompt that begins with it keeps it."""
    separator_id: int | None = None
    """A prompt that ends with it keeps it, and so does a response: an encoder's segments."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise DataError(f"max_length is {self.max_length}; at least 2 is needed")
        limit = self.max_prompt_length
        if limit is not None and not 1 <= limit <= self.max_length:
            raise DataError(
                f"max_prompt_length is {limit}; allowed: 1 to max_length ({self.max_length})"
            )

    @property
    def prompt_limit(self) -> int:
        """Tokens that a prompt keeps where the whole is too long."""
        return self.max_prompt_length or self.max_length // 2


@dataclass(frozen=True)
class Part:
    """Some responses of a tree, behind its prompt or what is left of that."""

    tree: TokenTree
    places: tuple[int, ...]
    """Of its responses, among those of the whole tree."""
    prompt_cut: bool = False
    responses_cut: int = 0


def fit(tree: TokenTree, room: Room) -> list[Part]:
    """The tree as one or two that have room; each response is in exactly one.

    As in training, the prompt is cut first, to its limit, then a response to what room is left.
    """
    lengths = [len(ids) for ids in tree.response_ids]
    space = room.max_length - len(tree.prompt_ids)
    whole = tuple(place for place, length in enumerate(lengths) if length <= space)
    if len(whole) == len(lengths):
        return [Part(tree, whole)]
    prompt_ids = _cut_prompt(tree.prompt_ids, room)
    space = room.max_length - len(prompt_ids)
    others = tuple(place for place, length in enumerate(lengths) if place not in set(whole))
    ids = tuple(_cut_response(tree.response_ids[place], space, room) for place in others)
    cut = replace(
        _some(tree, others),
        prompt_ids=prompt_ids,
        response_ids=ids,
        response_masks=tuple(
            tree.response_masks[place][: len(kept)] for place, kept in zip(others, ids, strict=True)
        ),
    )
    num_cut = sum(lengths[place] > len(kept) for place, kept in zip(others, ids, strict=True))
    parts = [Part(cut, others, len(prompt_ids) < len(tree.prompt_ids), num_cut)]
    return [Part(_some(tree, whole), whole), *parts] if whole else parts


def room_of(config: Any, tokenizer: Any, reading: Reading, decoder: bool) -> Room:
    """As in training; of a foreign model as much as it reads."""
    trained = settings_of(config)
    longest = reading.max_length or trained.max_length or most_tokens(config, tokenizer)
    prompt = reading.max_prompt_length
    if prompt is None and reading.max_length in (None, trained.max_length):
        prompt = trained.max_prompt_length
    return Room(
        max_length=longest,
        max_prompt_length=prompt,
        truncate_prompt=reading.truncate_prompt or trained.truncate_prompt,
        bos_id=tokenizer.bos_token_id if decoder else tokenizer.cls_token_id,
        separator_id=None if decoder else tokenizer.sep_token_id,
    )


def most_tokens(config: Any, tokenizer: Any) -> int:
    """What model and tokenizer say that they read at most; NO_LIMIT where neither does."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or NO_LIMIT
    if text.model_type in _COUNT_PADDING:
        positions -= text.pad_token_id + 1
    told = tokenizer.model_max_length
    return min(positions, told) if told < _SANE else positions


def halves(tree: TokenTree) -> list[TokenTree]:
    """The tree with its first responses, and with its others."""
    places, middle = range(len(tree.response_ids)), len(tree.response_ids) // 2
    return [_some(tree, places[:middle]), _some(tree, places[middle:])]


def _cut_prompt(ids: Sequence[int], room: Room) -> tuple[int, ...]:
    # A token of the response is scored at least, so that there is something to pool.
    limit = min(room.prompt_limit, room.max_length - 1)
    if len(ids) <= limit:
        return tuple(ids)
    first = ids[:1] if ids[0] == room.bos_id and limit > 1 else ()
    last = ids[-1:] if ids[-1] == room.separator_id and limit > 2 else ()
    inner = ids[len(first) : len(ids) - len(last)]
    kept = limit - len(first) - len(last)
    inner = inner[:kept] if room.truncate_prompt == "keep_start" else inner[len(inner) - kept :]
    return (*first, *inner, *last)


def _cut_response(ids: Sequence[int], space: int, room: Room) -> tuple[int, ...]:
    if len(ids) <= space:
        return tuple(ids)
    if ids[-1] == room.separator_id and space > 1:
        return (*ids[: space - 1], ids[-1])
    return tuple(ids[:space])


def _some(tree: TokenTree, places: Sequence[int]) -> TokenTree:
    """The tree with some of its responses, and nothing that is known of them."""
    return TokenTree(
        row_id=tree.row_id,
        prompt_ids=tree.prompt_ids,
        response_ids=tuple(tree.response_ids[place] for place in places),
        response_masks=tuple(tree.response_masks[place] for place in places),
    )
