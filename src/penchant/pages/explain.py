"""The page of `penchant explain`: one comparison, token by token."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from penchant.pages.markup import Markup, tag
from penchant.pages.table import Cell, Column, Row, table
from penchant.pages.template import page, section, terms

_SIGNS = {"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d", "\x7f": "\u2421", "\xa0": "\u237d"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """A token as it is shown; log-probabilities in nats, None where it has none."""

    id: int
    text: str
    is_content: bool = True
    is_scored: bool = False
    is_cut: bool = False
    is_marked: bool = False
    policy: float | None = None
    reference: float | None = None
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class ResponseView:
    """One response: which side it is, its tokens and its sums."""

    title: str
    tokens: Sequence[TokenView]
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything that is shown of one row."""

    row_id: str
    lead: str
    """What this row is, in a sentence."""
    prompt: Sequence[TokenView]
    responses: Sequence[ResponseView]
    pairs: Sequence[tuple[str, Sequence[str]]] = ()
    """Per pair: its name, and what `PAIR_COLUMNS` ask for."""
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = field(default_factory=list)


PAIR_COLUMNS = (
    Column("Pair", ""),
    Column("Loss", "Of this pair, as the objective counts it."),
    Column("Reward of chosen", "Implicit reward; of a reward model its score."),
    Column("Reward of rejected", "Implicit reward; of a reward model its score."),
    Column("Margin", "Reward of chosen less reward of rejected."),
    Column("Score gap", "Score of chosen less score of rejected, as the objective sees them."),
    Column("Soft label", "Probability that chosen is the better one."),
)


def visible(text: str) -> str:
    """The text with spaces, line ends and characters that have no shape as signs or code points."""
    if text == "":
        return "\u00b7\u00b7"  # A further piece of the character before it.
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character == " ":
        return "\u2423"
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character) in _INVISIBLE:
        return f"\u2039U+{ord(character):04X}\u203a"
    return character


def explain_page(shown: Explanation) -> str:
    """The whole document."""
    return page(
        f"Row {shown.row_id} as the model sees it",
        tag("p", "Penchant explain", class_="eyebrow"),
        tag("h1", tag("bdi", shown.row_id), " as the model sees it"),
        tag("p", shown.lead, class_="lead"),
        [tag("p", warning, class_="warning") for warning in shown.warnings],
        _pairs(shown.pairs),
        _legend(),
        section(f"Prompt: {_count(shown.prompt)}", _flow(shown.prompt)),
        [_response(one) for one in shown.responses],
        section("How this was made", terms(list(shown.facts))) if shown.facts else None,
    )


def _count(tokens: Sequence[TokenView]) -> str:
    lost = sum(token.is_cut for token in tokens)
    cut = f", {lost:,} of them cut" if lost else ""
    return f"{len(tokens):,} tokens{cut}"


def _pairs(pairs: Sequence[tuple[str, Sequence[str]]]) -> Markup | None:
    if not pairs:
        return None
    rows = [Row(name, [Cell(value) for value in values]) for name, values in pairs]
    return table("What the objective makes of it", PAIR_COLUMNS, rows)


def _legend() -> Markup:
    kinds = (
        ("scored content", "t scored"),
        ("scored template text", "t scored form"),
        ("only read", "t"),
        ("template text", "t form"),
        ("cut: never seen", "t cut-off"),
        ("differs from the other side", "t scored marked"),
    )
    items = [tag("span", tag("span", name, class_=f"{kind} sample")) for name, kind in kinds]
    return tag(
        "p",
        items,
        tag("span", "Small numbers: log-probability under the policy | reference [nats]; "
            "\u00d7 is the weight where it is not 1."),
        class_="legend token-legend",
    )  # fmt: skip


def _response(one: ResponseView) -> Markup:
    return section(
        f"{one.title}: {_count(one.tokens)}",
        terms(list(one.facts)) if one.facts else None,
        _flow(one.tokens),
    )


def _flow(tokens: Sequence[TokenView]) -> Markup:
    """Token after token, left to right whatever their script; a line end ends the line."""
    parts: list[Markup] = []
    for token in tokens:
        parts.append(_token(token))
        if "\n" in token.text:
            parts.append(tag("br"))
    return tag("div", parts, class_="tokens", dir="ltr")


def _token(token: TokenView) -> Markup:
    classes = ["t"]
    flags = {
        "scored": token.is_scored,
        "form": not token.is_content,
        "cut-off": token.is_cut,
        "marked": token.is_marked,
    }
    classes += [name for name, is_set in flags.items() if is_set]
    numbers = None
    if token.policy is not None:
        numbers = tag("small", _numbers(token), class_="nats")
    # bdi keeps a right-to-left token from moving its neighbours.
    text = tag("bdi", visible(token.text))
    return tag("span", text, numbers, class_=" ".join(classes), title=_title(token))


def _numbers(token: TokenView) -> str:
    assert token.policy is not None, "only tokens with a log-probability have numbers"
    text = nats(token.policy)
    if token.reference is not None:
        text += f"|{nats(token.reference)}"
    if token.weight is not None and not math.isclose(token.weight, 1, abs_tol=0.005):
        text += f" \u00d7{token.weight:.2f}"
    return text


def nats(value: float) -> str:
    """A log-probability in two decimals; 0 only where it is nearly certain."""
    return f"{value:.2f}".replace("-", "\u2212") if abs(value) >= 0.005 else "0"


def _title(token: TokenView) -> str:
    parts = [f"id {token.id}"]
    if token.policy is not None:
        parts.append(f"policy {token.policy:.4f} (p = {math.exp(token.policy):.3g})")
    if token.reference is not None:
        parts.append(f"reference {token.reference:.4f}")
    if token.weight is not None:
        parts.append(f"weight {token.weight:.3f}")
    return ", ".join(parts)
