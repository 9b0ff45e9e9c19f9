"""Gold rewards: what a response is really worth, computed and not judged.

Formula
    overall     = correctness * (1 + manner) / 2
    manner      = brevity where the task wants a plain answer, politeness where a courteous one
    correctness   of the answer alone, per task below
    politeness  = (has opening + has closing) / 2, halved by a filler sentence
    brevity     = max(0, 1 - words outside the answer / 8)
All lie in [0, 1]. A perfect reply has 1, one without a usable answer 0; nothing here raises.
Politeness and brevity contradict each other: the source of conflicting preferences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penchant.miniature.replies import Reply, read
from penchant.miniature.tasks import TASKS

BREVITY_WORDS = 8
"""Words outside the answer at which brevity is used up."""
RESULT_SHARE = 0.6
"""Of a sum's correctness: what its result counts; the steps have the rest."""


def clause_score(wanted: Sequence[str], given: Sequence[str]) -> float:
    """F1 of clauses as a multiset: 1 where they agree, 0 where they share none."""
    if not wanted or not given:
        return float(not wanted and not given)
    shared = (Counter(wanted) & Counter(given)).total()
    return 2 * shared / (len(wanted) + len(given))


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance of two sequences of words."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            replaced = diagonal + (a != b)
            diagonal, row[j] = row[j], min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def _clauses(answer: str) -> list[str]:
    return [" ".join(clause.split()) for clause in answer.split(",")]


def sum_correctness(wanted: str, given: str) -> float:
    """The result counts 0.6, the steps before it (F1) 0.4."""
    *steps, result = _clauses(wanted)
    *given_steps, given_result = _clauses(given)
    steps_score = clause_score(steps, given_steps)
    return RESULT_SHARE * (given_result == result) + (1 - RESULT_SHARE) * steps_score


def clause_correctness(wanted: str, given: str) -> float:
    """F1 of the clauses, in any order."""
    return clause_score(_clauses(wanted), _clauses(given))


def translation_correctness(wanted: str, given: str) -> float:
    """1 for the same words in the same order; each edit costs 2 / length; never below 0."""
    words = wanted.split()
    return max(0.0, 1 - 2 * edit_distance(words, given.split()) / max(1, len(words)))


CORRECTNESS: dict[str, Callable[[str, str], float]] = {
    "sum": sum_correctness,
    "summary": clause_correctness,
    "translate": translation_correctness,
    "ask": clause_correctness,
}


def politeness(reply: Reply) -> float:
    """Half for an opening, half for a closing; fillers halve it."""
    courtesy = (bool(reply.opening) + bool(reply.closing)) / 2
    return courtesy / 2 if reply.fillers else courtesy


def brevity(reply: Reply) -> float:
    """1 for the answer alone, less by 1/8 for every word around it."""
    around = (reply.opening, reply.closing, *reply.fillers)
    num_words = sum(len(sentence.split()) for sentence in around)
    return max(0.0, 1 - num_words / BREVITY_WORDS)


def gold_rewards(row: Mapping[str, Any], response: str) -> dict[str, float]:
    """All gold rewards of a response: correctness, politeness, brevity, overall; each in [0, 1].

    Args
        row: what names the question: `task` and `answer`, as in every row that a World draws.
        response: text of any kind.
    A reply without any answer has 0 throughout: courtesy alone is worth nothing.
    """
    nothing = dict.fromkeys(("correctness", "politeness", "brevity", "overall"), 0.0)
    task, wanted = row.get("task"), row.get("answer")
    if task not in TASKS or not isinstance(wanted, str) or not isinstance(response, str):
        return nothing
    reply = read(response)
    if not reply.answer:
        return nothing
    correct = CORRECTNESS[task](wanted, reply.answer)
    polite, brief = politeness(reply), brevity(reply)
    manner = brief if TASKS[task].manner == "plain" else polite
    overall = correct * (1 + manner) / 2
    return {"correctness": correct, "politeness": polite, "brevity": brief, "overall": overall}


def gold_reward(row: Mapping[str, Any], response: str, axis: str = "overall") -> float:
    """One of the gold rewards of a response, in [0, 1]; see `gold_rewards`.

    Args
        axis: overall, correctness, politeness or brevity; anything else is a KeyError.
    """
    return gold_rewards(row, response)[axis]
