"""Gold rewards: numbers to redo by hand, then bounds and order over many drawn replies."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.miniature import World, gold_reward, gold_rewards
from penchant.miniature.lexicon import CLOSINGS, FILLERS, OPENINGS
from penchant.miniature.replies import Reply, read
from penchant.miniature.rewards import clause_score, edit_distance, translation_correctness
from penchant.miniature.tasks import TASKS, in_velm, worked_sum

SUM = {"task": "sum", "answer": "7 + 8 = 15, 1 + 3 + 4 = 8, so 85"}
ASK = {"task": "ask", "answer": "snow is white, coal is black"}
VELM = {"task": "translate", "answer": "gorem velu miu ku tavi"}
LIST = {"task": "summary", "answer": "2 fig, 1 nut"}


@pytest.mark.parametrize(
    ("row", "response", "overall"),
    [
        (SUM, "7 + 8 = 15, 1 + 3 + 4 = 8, so 85.", 1.0),
        # Result wrong: correctness 0.4.
        (SUM, "7 + 8 = 15, 1 + 3 + 4 = 8, so 75.", 0.4),
        # One of two steps wrong: 0.6 + 0.4 * 1/2.
        (SUM, "7 + 8 = 16, 1 + 3 + 4 = 8, so 85.", 0.8),
        # Four words around the answer: brevity 1/2, so 3/4.
        (SUM, "certainly. 7 + 8 = 15, 1 + 3 + 4 = 8, so 85. you are welcome.", 0.75),
        (ASK, "certainly. snow is white, coal is black. you are welcome.", 1.0),
        # Plain where courtesy is wanted: half; one courtesy: three quarters.
        (ASK, "snow is white, coal is black.", 0.5),
        (ASK, "with pleasure. snow is white, coal is black.", 0.75),
        # One clause of two: F1 is 1/2.
        (ASK, "certainly. snow is white, coal is green. you are welcome.", 0.5),
        # A filler halves politeness: (1 + 1/2) / 2.
        (
            ASK,
            f"certainly. {FILLERS[0]}. snow is white, coal is black. you are welcome.",
            0.75,
        ),
        # One edit in five words: 1 - 2/5.
        (VELM, "certainly. gorem velu rako ku tavi. you are welcome.", 0.6),
        (VELM, "tavi miu. ", 0.0),
        # One clause forgotten: F1 = 2 * 1 / (2 + 1).
        (LIST, "2 fig.", 2 / 3),
        (LIST, "1 nut, 2 fig.", 1.0),
    ],
)
def test_hand_computed(row: dict[str, str], response: str, overall: float) -> None:
    assert gold_reward(row, response) == pytest.approx(overall, abs=1e-12)


def test_axes_by_hand() -> None:
    found = gold_rewards(ASK, "certainly. snow is white, coal is green.")
    assert found == pytest.approx(
        {"correctness": 0.5, "politeness": 0.5, "brevity": 7 / 8, "overall": 0.375}
    )
    assert gold_reward(ASK, "certainly. snow is white, coal is green.", "brevity") == 7 / 8
    with pytest.raises(KeyError):
        gold_reward(ASK, "snow is white.", "charm")


def test_politeness_and_brevity_exclude_each_other() -> None:
    polite = gold_rewards(ASK, "certainly. snow is white, coal is black. you are welcome.")
    brief = gold_rewards(ASK, "snow is white, coal is black.")
    assert polite["politeness"] > brief["politeness"]
    assert polite["brevity"] < brief["brevity"]


def test_building_blocks() -> None:
    assert worked_sum(37, 48) == SUM["answer"]
    assert worked_sum(30, 14) == "0 + 4 = 4, 3 + 1 = 4, so 44"
    assert in_velm(["the", "old", "king", "sees", "the", "cat"]) == VELM["answer"]
    assert edit_distance("abcd", "acd") == 1
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "ab") == 2
    assert clause_score(["a", "a"], ["a"]) == pytest.approx(2 / 3)
    assert clause_score([], []) == 1
    assert clause_score(["a"], []) == 0
    assert translation_correctness("a b c d", "a c b d") == 0


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        " ",
        ".",
        "...",
        "\n\n",
        "certainly. you are welcome.",
        "kjh kjh",
        "so",
        "0",
        ",",
        "é" * 99,
    ]
    + [f"{phrase}." for phrase in (*OPENINGS, *CLOSINGS, *FILLERS)],
)
@pytest.mark.parametrize("row", [SUM, ASK, VELM, LIST])
def test_garbage_is_worth_nothing(row: dict[str, str], garbage: str) -> None:
    assert gold_reward(row, garbage) == 0


def test_courtesy_without_an_answer_has_no_politeness() -> None:
    assert gold_reward(ASK, "certainly. you are welcome.", "politeness") == 0


@pytest.mark.parametrize("row", [{}, {"task": "ask"}, {"task": "chess", "answer": "e4"}])
def test_a_row_that_asks_nothing_has_no_reward(row: dict[str, str]) -> None:
    assert gold_reward(row, "snow is white.") == 0


@given(
    row=st.sampled_from(World(3).prompts(16)),
    pieces=st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from([*OPENINGS, *CLOSINGS, *FILLERS, ".", ". ", ", ", "snow is white"]),
        ),
        max_size=8,
    ),
)
def test_any_text_has_rewards_in_bounds(row: dict[str, str], pieces: list[str]) -> None:
    rewards = gold_rewards(row, "".join(pieces))
    assert all(0 <= value <= 1 for value in rewards.values())
    assert rewards["overall"] <= rewards["correctness"]


def test_a_perfect_reply_has_one_and_a_mistake_costs() -> None:
    rng = Random(5)
    spoilt = 0
    for row in World(5).prompts(200):
        courtesies = (OPENINGS[0], CLOSINGS[1]) if TASKS[row["task"]].manner != "plain" else ()
        assert gold_reward(row, Reply(row["answer"], *courtesies).text) == 1
        worse = TASKS[row["task"]].spoil(row["answer"], rng)
        if worse != row["answer"]:
            spoilt += 1
            assert gold_reward(row, Reply(worse, *courtesies).text) < 1
    assert spoilt > 180


def test_read_undoes_text() -> None:
    reply = Reply("snow is white", OPENINGS[1], CLOSINGS[2], (FILLERS[1],))
    assert read(reply.text) == reply
    assert read("snow is white. snow is red").fillers == ("snow is red",)
    assert read("you are welcome. certainly. a").fillers == ("you are welcome", "certainly")
