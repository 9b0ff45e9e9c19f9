"""Every format recognised in the layout in which it is published, and what is made of its rows."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest

from penchant import data
from penchant.data import formats
from penchant.data.conversion import writable
from penchant.errors import DataError
from tests.data.real_rows import REAL_ROWS, TOOLS, WANTED, real_rows
from tests.data.samples import ask, bpe_tokenizer, read_one, say, write_rows

EACH = [(name, place) for name, rows in REAL_ROWS.items() for place in range(len(rows))]


def one(tmp_path, name, place=0, **changes):
    row = real_rows(name)[place] | changes
    return read_one(tmp_path, row, format=WANTED.get(name, name))


def reason(tmp_path, name, place=0, **changes):
    row = real_rows(name)[place]
    path = write_rows(tmp_path / "rows.jsonl", [row, {**row, **changes}])
    return [row.reason for row in data.load(path, format=WANTED.get(name, name)).set_aside]


def test_every_format_has_rows_and_a_line_in_the_docs():
    assert set(REAL_ROWS) == set(formats.known())
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert sorted(line.split("`")[1] for line in lines) == sorted(formats.known())
    written = page.rpartition("writes ")[2]
    assert all(f"`{name}`" in written for name in writable())


@pytest.mark.parametrize(("name", "place"), EACH)
def test_one_format_and_no_other_knows_a_row(tmp_path, name, place):
    row = real_rows(name)[place]
    columns = frozenset(row)
    matching = [other for other, module in formats.known().items() if module.matches(columns, row)]
    assert matching == [name]
    if name in WANTED:
        with pytest.raises(DataError, match=r"academy, business, .* data\.format=dsp:academy"):
            read_one(tmp_path, row)
    comparison = read_one(tmp_path, row, format=WANTED.get(name, "auto"))
    assert comparison.format == name
    tree = data.tree(comparison, bpe_tokenizer())
    assert len(tree.response_ids) == len(comparison.responses)


@pytest.mark.parametrize("name", sorted(REAL_ROWS))
def test_reading_changes_nothing_in_a_row(name):
    for row in real_rows(name):
        before = copy.deepcopy(row)
        reader = formats.detect([row], "s", WANTED.get(name, name))
        reader.read(row, "s:1", "s")
        assert row == before


def test_hh_transcripts_become_messages(tmp_path):
    comparison = one(tmp_path, "hh")
    assert comparison.prompt == (ask("Hello"), say("Hi!"), ask("An egg?"))
    assert comparison.responses == ((say("Boil it."),), (say("No."),))
    assert one(tmp_path, "hh", 1).prompt == (ask("An egg?"),)
    assert one(tmp_path, "hh", 1).responses == comparison.responses


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Bye", "no_assistant_turn"),
        ("\n\nHuman: Hello\n\nAssistant: ", "empty_response"),
        ("Hello\n\nAssistant: Hi!", "not_a_transcript"),
        ("\n\nHuman: Good day\n\nAssistant: Hi!", "empty_prompt"),
        (REAL_ROWS["hh"][0]["rejected"], "chosen_equals_rejected"),
        (None, "missing_column"),
    ],
)
def test_transcripts_of_no_use(tmp_path, chosen, expected):
    assert reason(tmp_path, "hh", chosen=chosen) == [expected]


def test_ultrafeedback_by_overall_score_or_by_ratings(tmp_path):
    overall = one(tmp_path, "ultrafeedback")
    assert overall.scores == (7.5, 10.0, 2.0, 9.0) and overall.prompt[0]["role"] == "user"
    path = write_rows(tmp_path / "u.jsonl", real_rows("ultrafeedback"))
    loaded = data.load(path, format="ultrafeedback:ratings")
    assert loaded[0].scores == (4.5, 1.0, 2.5, 5.0)
    assert loaded.formats == {"u": "ultrafeedback:ratings"}
    with pytest.raises(DataError, match="no 'best'; say which of overall, ratings"):
        data.load(path, format="ultrafeedback:best")
    with pytest.raises(DataError, match="has no choice"):
        data.load(path, format="scored:best")


def test_ultrafeedback_with_damage(tmp_path):
    (row,) = real_rows("ultrafeedback")
    row["completions"][0]["annotations"] = None
    row["completions"][1]["response"] = None
    row["completions"][2]["annotations"] = {"honesty": {"Rating": "N/A"}}
    comparison = read_one(tmp_path, row, format="ultrafeedback:ratings")
    assert len(comparison.responses) == 3 and comparison.scores[0] == 2.5
    assert math.isnan(comparison.scores[1])
    assert reason(tmp_path, "ultrafeedback", completions=["a", "b"]) == ["wrong_type"]
    assert reason(tmp_path, "ultrafeedback", instruction=None) == ["missing_column"]


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({}, ((0, 1),)),
        ({"score_A": 5}, ((1, 0),)),
        ({"score_A": 5, "labels": 1}, ((1, 0),)),
        ({"score_A": 166, "labels": 0}, ((1, 0),)),
        ({"score_A": 166, "labels": 1}, ((0, 1),)),
        ({"score_A": None, "score_B": None, "labels": 0}, ((1, 0),)),
    ],
)
def test_shp_prefers_more_votes_and_then_the_label(tmp_path, changes, pairs):
    comparison = one(tmp_path, "shp", **changes)
    assert comparison.pairs == pairs and comparison.prompt_id == "qt3nxl"
    assert comparison.prompt == (ask("How long does an egg boil?"),)


def test_shp_of_no_use(tmp_path):
    assert reason(tmp_path, "shp", labels=None, score_A=166) == ["missing_column"]
    assert reason(tmp_path, "shp", history=" ") == ["empty_prompt"]
    assert reason(tmp_path, "shp", human_ref_A=" ") == ["empty_response"]


def test_summaries_and_their_posts(tmp_path):
    comparison = one(tmp_path, "summarize-from-feedback")
    asked = (
        "SUBREDDIT: r/relationships\nTITLE: My friend (21F) eats raw eggs\n"
        "POST: She says that boiling them is a waste of time. What should I do?\nTL;DR: "
    )
    assert comparison.prompt == (ask(asked),) and comparison.pairs == ((1, 0),)
    assert comparison.responses[1] == (say(" Eggs, what should I do?"),)
    assert one(tmp_path, "tldr").prompt == (ask(asked),)
    (row,) = real_rows("summarize-from-feedback")
    row["info"].update(subreddit=None, post=None, article="Eggs fell.", title="News")
    assert read_one(tmp_path, row).prompt == (ask("TITLE: News\nARTICLE: Eggs fell.\nTL;DR: "),)
    for choice in (2, -1, "x", None):
        expected = "missing_column" if choice is None else "wrong_type"
        assert reason(tmp_path, "summarize-from-feedback", choice=choice) == [expected]


def test_lists_of_texts_and_scores(tmp_path):
    dialogue, webgpt, separated, plain = (one(tmp_path, "text-score", n) for n in range(4))
    assert dialogue.prompt == webgpt.prompt == (ask("An egg?"),)
    assert webgpt.responses == ((say("Boil it [1]."),), (say("No."),))
    assert webgpt.scores == (0.5, 1.5) and webgpt.pairs is None
    assert separated.prompt == "Human: An egg?" and separated.responses == ("Boil it.", "No.")
    assert separated.scores == (0.3, 0.1)
    assert plain.prompt == "An egg?" and plain.responses == (" Boil it.", " No.")
    assert reason(tmp_path, "text-score", 3, score=[1, 2]) == ["scores_do_not_fit"]
    assert reason(tmp_path, "text-score", 2, texts=["a<sep>b", "c<sep>d"]) == [
        "prompt_per_response"
    ]


def test_the_preferred_domain_against_each_other_one(tmp_path):
    comparison = one(tmp_path, "dsp")
    assert comparison.responses[0] == (say("A cell."),)
    assert comparison.pairs == ((0, 1), (0, 2), (0, 3), (0, 4))
    path = write_rows(tmp_path / "d.jsonl", real_rows("dsp"))
    business = data.load({"path": str(path), "format": "dsp:business"})
    assert business[0].responses[0] == (say("A product."),)
    with pytest.raises(DataError, match="has no 'law'; say which of academy"):
        data.load(path, format="dsp:law")
    odd = write_rows(tmp_path / "odd.jsonl", [{"query": "q", "responses": {"a\nb": "x", "c": "y"}}])
    with pytest.raises(DataError, match=r"say which of a b, c with"):
        data.load(odd)
    assert reason(tmp_path, "dsp", responses={"business": "A product."}) == ["missing_column"]
    assert reason(tmp_path, "dsp", responses={"academy": "A cell."}) == ["no_pair"]


def test_sharegpt_turns_calls_and_rankings(tmp_path):
    plain, pair, tools = (one(tmp_path, "sharegpt", n) for n in range(3))
    assert plain.prompt == (ask("An egg?"),) and plain.responses == ((say("Yes"),),)
    assert pair.pairs == ((0, 1),) and pair.responses[1] == (say("No."),)
    system, asked, call, result, answer = (*tools.prompt, *tools.responses[0])
    assert (system["role"], asked["role"]) == ("system", "user")
    assert call["tool_calls"][0]["function"] == {"name": "boil", "arguments": {"n": 1}}
    assert result == {"role": "tool", "content": "done"} and answer == say("It is done.")
    assert tools.template_kwargs["tools"][0]["name"] == "boil"
    odd = [{"from": "the moon", "value": "x"}]
    assert reason(tmp_path, "sharegpt", conversations=odd) == ["unknown_role"]


def test_messages_may_be_spelt_as_sharegpt_does(tmp_path):
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "yes"}]
    other = [turns[0], {"from": "gpt", "value": "no"}]
    comparison = read_one(tmp_path, {"chosen": turns, "rejected": other})
    assert comparison.prompt == (ask("Q"),) and comparison.responses[1] == (say("no"),)


def test_alpaca_rows(tmp_path):
    plain, pair, listed = (one(tmp_path, "alpaca", n) for n in range(3))
    assert plain.prompt == (ask("Name the larger number.\n3, 7"),) and plain.pairs is None
    system = {"role": "system", "content": "Be brief."}
    assert pair.prompt == (system, ask("Hello"), say("Hi"), ask("And now?"))
    assert pair.pairs == listed.pairs == ((0, 1),)
    assert reason(tmp_path, "alpaca", 1, history=[["Hello"]]) == ["wrong_type"]
    assert reason(tmp_path, "alpaca", 1, chosen=None) == ["missing_column"]


def test_rewardbench_answers_one_by_one_and_in_lists(tmp_path):
    first, second = (one(tmp_path, "rewardbench", n) for n in range(2))
    assert first.prompt == second.prompt == (ask("How do I boil an egg?"),)
    assert (first.prompt_id, second.prompt_id) == ("0", "factuality:0")
    assert second.pairs == ((0, 1), (0, 2), (0, 3))
    assert reason(tmp_path, "rewardbench", chosen=[]) == ["empty_response"]


def test_labels_and_what_learns_from_them(tmp_path):
    up, down = (one(tmp_path, "kto", n) for n in range(2))
    assert up.labels == (True,) and down.labels == (False,) and up.pairs is None
    csv = one(tmp_path, "kto", label="False")
    assert csv.labels == (False,)
    assert reason(tmp_path, "kto", label=None) == ["missing_column"]
    assert reason(tmp_path, "kto", label=2) == ["wrong_type"]
    path = write_rows(tmp_path / "kto.jsonl", real_rows("kto"))
    loaded = data.load(path, format="kto")
    trees, report = data.build_trees(loaded, bpe_tokenizer(), use="chosen")
    assert len(trees) == 2 and report.set_aside == {"thumb_down": 2}
    with pytest.raises(DataError, match="no_pair"):
        data.build_trees(loaded, bpe_tokenizer())


def test_questions_with_options(tmp_path):
    comparison = one(tmp_path, "solutions", 1)
    assert comparison.prompt == (ask("Which is larger?\nOptions:\nthree\nseven"),)
    assert comparison.responses == ((say("The answer is seven"),),)


def test_calls_survive_a_row_whose_content_is_none(tmp_path):
    comparison = one(tmp_path, "preference", 2)
    call, result, answer = comparison.responses[0]
    assert call["content"] == "" and call["tool_calls"][0]["function"]["name"] == "boil"
    assert result["role"] == "tool" and answer == say("It is done.")
    assert comparison.template_kwargs == {"tools": TOOLS}


def test_one_damaged_row_does_not_decide_what_a_transcript_is(tmp_path):
    good = real_rows("hh")[0]
    rows = [{"chosen": 7, "rejected": "x"}, *[good] * 3]
    loaded = data.load(write_rows(tmp_path / "a.jsonl", rows))
    assert loaded.formats == {"a": "hh"} and loaded.rows_in == 4


def test_half_transcripts_half_text_is_refused(tmp_path):
    plain = {"chosen": "Q: yes", "rejected": "Q: no"}
    rows = [real_rows("hh")[0], plain]
    with pytest.raises(DataError, match=r"hh and preference; .* data\.format=hh"):
        data.load(write_rows(tmp_path / "a.jsonl", rows))
