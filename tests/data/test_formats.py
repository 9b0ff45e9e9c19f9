"""What each format makes of a row, and how a data set's format is found."""

from __future__ import annotations

import json
import math

import pytest

from penchant import data
from penchant.data import formats
from penchant.errors import DataError
from tests.data.samples import ask, bpe_tokenizer, preference_row, read_one, say, write_rows

SYSTEM = {"role": "system", "content": "Be brief."}


def reasons(tmp_path, *rows, **options):
    """Reason by line of the rows set aside."""
    loaded = data.load(write_rows(tmp_path / "rows.jsonl", list(rows)), **options)
    return {row.line: row.reason for row in loaded.set_aside}


@pytest.mark.parametrize(
    ("row", "prompt", "chosen"),
    [
        ({"prompt": "Q", "chosen": "yes", "rejected": "no"}, "Q", "yes"),
        (
            {"prompt": [ask("Q")], "chosen": "yes", "rejected": "no"},
            (ask("Q"),),
            (say("yes"),),
        ),
        (
            {"prompt": [ask("Q")], "chosen": [say("yes")], "rejected": [say("no")]},
            (ask("Q"),),
            (say("yes"),),
        ),
        (
            {"prompt": "Q", "chosen": [ask("Q"), say("yes")], "rejected": [ask("Q"), say("no")]},
            (ask("Q"),),
            (say("yes"),),
        ),
        (
            {"prompt": "Q", "chosen": [say("yes")], "rejected": [say("no")]},
            (ask("Q"),),
            (say("yes"),),
        ),
        (
            {
                "prompt": [SYSTEM, ask("Q")],
                "chosen": [SYSTEM, ask("Q"), say("yes")],
                "rejected": [SYSTEM, ask("Q"), say("no")],
            },
            (SYSTEM, ask("Q")),
            (say("yes"),),
        ),
        (
            {"chosen": [SYSTEM, ask("Q"), say("yes")], "rejected": [SYSTEM, ask("Q"), say("no")]},
            (SYSTEM, ask("Q")),
            (say("yes"),),
        ),
        (
            {
                "chosen": [ask("Q"), say("A"), ask("R"), say("yes")],
                "rejected": [ask("Q"), say("A"), ask("S"), say("no")],
            },
            (ask("Q"), say("A")),
            (ask("R"), say("yes")),
        ),
        (
            {
                "chosen": [ask("Q"), say("yes"), ask("R"), say("B")],
                "rejected": [ask("Q"), say("yes")],
            },
            (ask("Q"),),
            (say("yes"), ask("R"), say("B")),
        ),
        (
            {"chosen": "Q: why? Because yes.", "rejected": "Q: why? Because no."},
            "Q: why? Because",
            " yes.",
        ),
        ({"chosen": "yes", "rejected": "yesterday"}, "", "yes"),
    ],
)
def test_where_a_preference_row_branches(tmp_path, row, prompt, chosen):
    comparison = read_one(tmp_path, row)
    assert comparison.prompt == prompt and comparison.responses[0] == chosen
    assert comparison.pairs == ((0, 1),) and comparison.format == "preference"


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_rating", "rejected_rating"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_score", "rejected_score"),
    ],
)
@pytest.mark.parametrize("text", [False, True])
def test_scores_under_any_of_their_names(tmp_path, chosen, rejected, text):
    values = ("4.5", "-2") if text else (4.5, -2)
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no", chosen: values[0], rejected: values[1]}
    assert read_one(tmp_path, row).scores == (4.5, -2.0)


def test_a_missing_score_is_nan_and_no_column_is_none(tmp_path):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    assert read_one(tmp_path, row).scores is None
    scores = read_one(tmp_path, {**row, "score_chosen": 3, "score_rejected": None}).scores
    assert scores[0] == 3 and math.isnan(scores[1])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chosen": None}, "missing_column"),
        ({"rejected": [say("  ")]}, "empty_response"),
        ({"chosen": []}, "empty_response"),
        ({"chosen": [say("No idea.")]}, "chosen_equals_rejected"),
        ({"chosen": 7}, "wrong_type"),
        ({"chosen": [3]}, "wrong_type"),
        ({"chosen": [{"role": "assistant"}]}, "wrong_type"),
        ({"chosen": [{"content": "x"}]}, "wrong_type"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "image"}]}]}, "wrong_type"),
        ({"prompt": {"text": "x"}}, "wrong_type"),
        ({"prompt": "Q", "chosen": "yes"}, "wrong_type"),
        ({"score_chosen": "good"}, "wrong_type"),
        ({"score_chosen": {"a": 1}}, "wrong_type"),
        ({"chosen": [say("\ud800")]}, "bad_text"),
        ({"tools": "{not json"}, "wrong_type"),
        ({"tools": {"a": 1}}, "wrong_type"),
        ({"chat_template_kwargs": [1]}, "wrong_type"),
    ],
)
def test_a_row_of_no_use_is_set_aside_with_its_reason(tmp_path, changes, reason):
    rows = [preference_row(1), preference_row(2, **changes)]
    assert reasons(tmp_path, *rows) == {2: reason}


def test_content_in_parts_is_joined(tmp_path):
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "seven."}]
    row = preference_row(chosen=[{"role": "assistant", "content": parts}])
    assert read_one(tmp_path, row).responses[0] == (say("It is seven."),)


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("chatgpt", "llama2-13b-chat")])
def test_orca_rows_stay_aligned(tmp_path, names):
    """The original shuffled the two sides apart; here the row's number is in every field."""
    rows = [
        {
            "system": f"system {n}" if n % 2 else "",
            "question": f"question {n}",
            names[0]: f"good {n}",
            names[1]: f"bad {n}",
        }
        for n in range(50)
    ]
    path = write_rows(tmp_path / "orca.jsonl", rows)
    loaded = data.load({"path": str(path), "fraction": 0.5})
    trees, _ = data.build_trees(loaded, bpe_tokenizer())
    assert loaded.formats == {"orca": "orca"} and len(trees) == 25
    for comparison, tree in zip(loaded, trees, strict=True):
        number = int(comparison.row_id.split(":")[1]) - 1
        decode = bpe_tokenizer().decode
        assert f"question {number}<|im_end|>" in decode(tree.prompt_ids)
        assert (f"system {number}<|im_end|>" in decode(tree.prompt_ids)) == bool(number % 2)
        assert decode(tree.response_ids[tree.pairs_P2[0][0]]) == f"good {number}<|im_end|>\n"
        assert decode(tree.response_ids[tree.pairs_P2[0][1]]) == f"bad {number}<|im_end|>\n"


def test_orca_plain_joins_system_and_question_with_nothing(tmp_path):
    row = {"system": "Be brief.", "question": "Which?", "chosen": "Seven.", "rejected": "three"}
    tokenizer = bpe_tokenizer(has_bos=True)
    tree = data.tree(read_one(tmp_path, row), tokenizer, chat_template="plain")
    assert tokenizer.decode(tree.prompt_ids) == "<bos>Be brief.Which?"
    assert tokenizer.decode(tree.response_ids[0]) == "Seven.<eos>"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, "2", None]},
        {"instruction": "Q", "completions": ["a", "b", "c"], "ratings": [[0, 2], 2.0, []]},
        {
            "question": "Q",
            "solutions": {"x": "a", "y": "b", "z": "c"},
            "scores": {"y": 2, "x": 1, "z": math.nan},
        },
    ],
)
def test_scored_responses(tmp_path, row):
    comparison = read_one(tmp_path, row)
    assert comparison.responses == ("a", "b", "c") and comparison.pairs is None
    assert comparison.scores[:2] == (1.0, 2.0) and math.isnan(comparison.scores[2])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scores": [1, 2, 3]}, "scores_do_not_fit"),
        ({"responses": {"x": "a", "y": "b"}, "scores": {"x": 1}}, "scores_do_not_fit"),
        ({"responses": ["a", " "]}, "empty_response"),
        ({"responses": "ab"}, "wrong_type"),
        ({"responses": ["a", [say("b")]]}, "wrong_type"),
        ({"prompt": {"x": "Q", "y": "R"}}, "prompt_per_response"),
    ],
)
def test_scored_rows_of_no_use(tmp_path, changes, reason):
    row = {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 2]}
    assert reasons(tmp_path, row, {**row, **changes}) == {2: reason}


def test_conversations_and_completions(tmp_path):
    turns = [ask("Q"), say("A"), ask("R"), say("B")]
    comparison = read_one(tmp_path, {"messages": turns})
    assert comparison.prompt == (ask("Q"),) and comparison.responses == (tuple(turns[1:]),)
    completion = read_one(tmp_path, {"prompt": "Q", "completion": "A"})
    assert (completion.prompt, completion.responses) == ("Q", ("A",))
    rows = [{"messages": turns}, {"messages": [ask("Q")]}, {"messages": [ask("Q"), say("")]}]
    assert reasons(tmp_path, *rows) == {2: "no_assistant_turn", 3: "empty_response"}


def test_no_format_names_the_columns_and_the_formats(tmp_path):
    with pytest.raises(DataError) as caught:
        read_one(tmp_path, {"prompt": "Q", "chosen": "A", "rejcted": "B"})
    for part in (
        "chosen, prompt, rejcted",
        "known formats: alpaca, answers, candidates, dsp, hh, ",
        "data.format",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="known formats: auto, alpaca"):
        read_one(tmp_path, preference_row(), format="prefrence")


def test_columns_that_fit_two_formats_are_refused(tmp_path):
    both = {"messages": [ask("Q"), say("A")], "chosen": "a", "rejected": "b"}
    assert read_one(tmp_path, both).format == "preference"
    twice = {"prompt": "Q", "completion": "A", "responses": ["a", "b"], "is_correct": [True, False]}
    with pytest.raises(DataError, match=r"messages and scored; .* data\.format=messages"):
        read_one(tmp_path, twice)
    assert read_one(tmp_path, twice, format="scored").scores == (1.0, 0.0)
    assert read_one(tmp_path, twice, format="messages").responses == ("A",)


def test_formats_divide_every_set_of_their_columns():
    """Preference and orca share columns; no row may be both."""
    prefer, orca = formats.known()["preference"], formats.known()["orca"]
    names = ["prompt", "question", "chosen", "rejected", "chatgpt", "llama2-13b-chat", "system"]
    for bits in range(2 ** len(names)):
        columns = frozenset(name for place, name in enumerate(names) if bits >> place & 1)
        for row in ({}, {"chosen": []}):
            assert not (prefer.matches(columns, row) and orca.matches(columns, row))


@pytest.mark.parametrize("column", ["input", "query", "system"])
def test_strings_whose_prompt_has_another_name_are_refused(tmp_path, column):
    """Read as pairs without a prompt they would train on answers to nothing."""
    row = {column: "Q", "chosen": "yes", "rejected": "no"}
    with pytest.raises(DataError, match="rename the columns"):
        read_one(tmp_path, row)
    whole = {"question": "Q", "chosen": [ask("Q"), say("yes")], "rejected": [ask("Q"), say("no")]}
    assert read_one(tmp_path, whole).format == "preference"


def test_a_row_nested_too_deep_is_set_aside(tmp_path):
    deep = {"role": "assistant", "content": "x", "extra": 0}
    nested = json.dumps(preference_row(1, chosen=[deep], rejected=[deep], score_chosen="HERE"))
    brackets = "[" * 950, "]" * 950
    lines = [
        nested.replace('"extra": 0', '"extra": ' + "".join(brackets)),
        nested.replace('"HERE"', "1".join(brackets)),
    ]
    loaded = data.load(write_rows(tmp_path / "deep.jsonl", [preference_row(0), *lines]))
    assert len(loaded) == 1 and loaded.rows_in == 3


def test_a_damaged_first_row_does_not_decide_the_format(tmp_path):
    rows = [{"oops": 1}, *(preference_row(n) for n in range(5))]
    assert reasons(tmp_path, *rows) == {1: "missing_column"}
