"""A reply: the answer, and how it is given.

    "certainly. snow is white. you are welcome."    courteous
    "snow is white."                                curt
    "many people ask me this every day. snow is white."    rambling

`Reply.text` writes it, `read` takes text of any kind apart again.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from penchant.miniature import lexicon


@dataclass(frozen=True)
class Reply:
    """What was said, in parts; an empty part was left out."""

    answer: str
    opening: str = ""
    closing: str = ""
    fillers: tuple[str, ...] = ()
    """Sentences that neither answer nor belong to the courtesies at their place."""

    @property
    def text(self) -> str:
        """The sentences in the usual order, each closed by a full stop."""
        sentences = (self.opening, *self.fillers, self.answer, self.closing)
        return " ".join(f"{sentence}." for sentence in sentences if sentence)


def read(text: str) -> Reply:
    """Takes a response apart.

    The opening counts as the first sentence only, the closing as the last; the answer is the
    first sentence that is no set phrase; everything else is filler.
    """
    sentences = [" ".join(sentence.split()) for sentence in text.split(".")]
    sentences = [sentence for sentence in sentences if sentence]
    opening = closing = answer = ""
    if sentences and sentences[0] in lexicon.OPENINGS:
        opening = sentences.pop(0)
    if sentences and sentences[-1] in lexicon.CLOSINGS:
        closing = sentences.pop()
    fillers = []
    set_phrases = {*lexicon.OPENINGS, *lexicon.CLOSINGS, *lexicon.FILLERS}
    for sentence in sentences:
        if answer or sentence in set_phrases:
            fillers.append(sentence)
        else:
            answer = sentence
    return Reply(answer, opening, closing, tuple(fillers))


MANNERS = {"courteous": 0.25, "half": 0.2, "curt": 0.25, "rambling": 0.3}
"""How people reply, and how often."""


def dress(answer: str, manner: str, rng: Random) -> Reply:
    """The answer, given in one of the `MANNERS`."""
    opening, closing = rng.choice(lexicon.OPENINGS), rng.choice(lexicon.CLOSINGS)
    fillers: tuple[str, ...] = ()
    if manner == "rambling":
        fillers = (rng.choice(lexicon.FILLERS),)
    if manner == "curt" or (manner == "rambling" and rng.random() < 0.5):
        opening = closing = ""
    elif manner == "half":
        opening, closing = rng.choice(((opening, ""), ("", closing)))
    return Reply(answer, opening, closing, fillers)


def draw_manner(rng: Random) -> str:
    """One of the `MANNERS`, as often as people use it."""
    return rng.choices(list(MANNERS), list(MANNERS.values()))[0]
