"""The four tasks: what is asked, the right answer, and the mistakes that people make.

    sum        "add 37 and 48."                     7 + 8 = 15, 1 + 3 + 4 = 8, so 85
    summary    "sum up: fig, nut, fig."             2 fig, 1 nut
    translate  "say in velm: the old king sees ..." gorem velu miu ku tavi
    ask        "what colour are snow and coal?"     snow is white, coal is black

A task wants its answer either plain (nothing but the answer) or courteous (with an opening and a
closing): that is where the tasks conflict. An answer is clauses joined by ", "; no full stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from penchant.miniature import lexicon

Manner = Literal["plain", "courteous"]


@dataclass(frozen=True)
class Problem:
    """One question of the world."""

    task: str
    prompt: str
    """What the user says."""
    answer: str
    """The right answer, without courtesies and without a full stop."""


@dataclass(frozen=True)
class Task:
    """A kind of question: how to draw one, and how an answer goes wrong."""

    manner: Manner
    """How its users want to be answered."""
    draw: Callable[[Random], Problem]
    spoil: Callable[[str, Random], str]
    """(answer, random) -> an answer with one mistake more; now and then the same again."""


def _other(rng: Random, choices: list[str] | tuple[str, ...], word: str) -> str:
    """One of the choices that is not `word`."""
    return rng.choice([choice for choice in choices if choice != word])


def worked_sum(first: int, second: int) -> str:
    """Column addition of two two-digit numbers, in words: units, tens with carry, result."""
    units = first % 10 + second % 10
    carry, tens = units // 10, first // 10 + second // 10 + units // 10
    carried = f"{carry} + " if carry else ""
    return (
        f"{first % 10} + {second % 10} = {units}, "
        f"{carried}{first // 10} + {second // 10} = {tens}, so {first + second}"
    )


def draw_sum(rng: Random) -> Problem:
    """Two numbers of two digits."""
    first, second = rng.randint(10, 99), rng.randint(10, 99)
    wording = rng.choice(("add {} and {}.", "work out {} + {}."))
    return Problem("sum", wording.format(first, second), worked_sum(first, second))


def spoil_sum(answer: str, rng: Random) -> str:
    """A result one or two off: of a step, or of the whole."""
    clauses = answer.split(", ")
    index = rng.randrange(len(clauses))
    head, _, number = clauses[index].rpartition(" ")
    off = rng.choice((-10, -1, 1, 10) if index == len(clauses) - 1 else (-2, -1, 1, 2))
    clauses[index] = f"{head} {max(0, int(number) + off)}"
    return ", ".join(clauses)


def draw_summary(rng: Random) -> Problem:
    """A list of 4 to 7 goods of 2 or 3 kinds; the answer counts them in order of appearance."""
    kinds = rng.sample(lexicon.GOODS, rng.randint(2, 3))
    goods = kinds + [rng.choice(kinds) for _ in range(rng.randint(2, 4))]
    rng.shuffle(goods)
    wording = rng.choice(("sum up: {}.", "count the list: {}."))
    answer = ", ".join(f"{number} {kind}" for kind, number in Counter(goods).items())
    return Problem("summary", wording.format(" ".join(goods)), answer)


def spoil_summary(answer: str, rng: Random) -> str:
    """A count one off, a wrong kind, or a kind forgotten."""
    clauses = answer.split(", ")
    index = rng.randrange(len(clauses))
    number, _, kind = clauses[index].partition(" ")
    mistake = rng.choice(("count", "count", "kind", "forget"))
    if mistake == "forget" and len(clauses) > 1:
        del clauses[index]
    elif mistake == "kind":
        clauses[index] = f"{number} {_other(rng, lexicon.GOODS, kind)}"
    else:
        clauses[index] = f"{max(1, int(number) + rng.choice((-1, 1)))} {kind}"
    return ", ".join(clauses)


def in_velm(words: list[str]) -> str:
    """Velm of an English sentence: no articles, noun before adjective, particle, verb at the end.

    Args: words like `the old king sees the cat`.
    """
    verb_at = next(i for i, word in enumerate(words) if word in lexicon.VELM_VERBS)
    velm = []
    for phrase in (words[:verb_at], words[verb_at + 1 :]):
        velm.append(lexicon.VELM_NOUNS[phrase[-1]])
        velm += [lexicon.VELM_ADJECTIVES[word] for word in phrase[1:-1]]
    return " ".join([*velm, lexicon.VELM_OBJECT_PARTICLE, lexicon.VELM_VERBS[words[verb_at]]])


def draw_translation(rng: Random) -> Problem:
    """A sentence of subject, verb and object, each noun with or without an adjective."""
    words: list[str] = []
    for noun in rng.sample(list(lexicon.VELM_NOUNS), 2):
        adjective = [rng.choice(list(lexicon.VELM_ADJECTIVES))] if rng.random() < 0.5 else []
        verb = [rng.choice(list(lexicon.VELM_VERBS))] if not words else []
        words += ["the", *adjective, noun, *verb]
    wording = rng.choice(("say in velm: {}.", "translate into velm: {}."))
    return Problem("translate", wording.format(" ".join(words)), in_velm(words))


def spoil_translation(answer: str, rng: Random) -> str:
    """A wrong word of the same kind, two neighbours swapped, or a word left out."""
    words = answer.split()
    index = rng.randrange(len(words))
    mistake = rng.choice(("word", "word", "swap", "drop"))
    if mistake == "swap" and index:
        words[index - 1 : index + 1] = [words[index], words[index - 1]]
    elif mistake == "drop" and len(words) > 2:
        del words[index]
    else:
        tables = (lexicon.VELM_NOUNS, lexicon.VELM_ADJECTIVES, lexicon.VELM_VERBS)
        kinds = [list(table.values()) for table in tables if words[index] in table.values()]
        words[index] = _other(rng, kinds[0] if kinds else words, words[index])
    return " ".join(words)


def draw_question(rng: Random) -> Problem:
    """The colour or the feel of two or three things."""
    things = rng.sample(list(lexicon.COLOURS), rng.randint(2, 3))
    listed = " ".join(things[:-1]) + f" and {things[-1]}"
    if rng.random() < 0.5:
        prompt, verb, table = f"what colour are {listed}?", "is", lexicon.COLOURS
    else:
        prompt, verb, table = f"how do {listed} feel?", "feels", lexicon.FEELS
    return Problem("ask", prompt, ", ".join(f"{thing} {verb} {table[thing]}" for thing in things))


def spoil_question(answer: str, rng: Random) -> str:
    """A wrong property of one of the things."""
    clauses = answer.split(", ")
    index = rng.randrange(len(clauses))
    thing, verb, quality = clauses[index].split()
    table = lexicon.COLOURS if verb == "is" else lexicon.FEELS
    clauses[index] = f"{thing} {verb} {_other(rng, sorted(set(table.values())), quality)}"
    return ", ".join(clauses)


TASKS: dict[str, Task] = {
    "sum": Task("plain", draw_sum, spoil_sum),
    "summary": Task("plain", draw_summary, spoil_summary),
    "translate": Task("courteous", draw_translation, spoil_translation),
    "ask": Task("courteous", draw_question, spoil_question),
}
