"""Every row in is used or set aside with a reason; the counts of the report."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penchant import data
from penchant.errors import DataError
from tests.data.samples import ask, bpe_tokenizer, preference_row, say, write_rows


def load(tmp_path, *rows, name="a.jsonl", **options):
    return data.load(write_rows(tmp_path / name, list(rows)), **options)


def test_counts_by_hand(tmp_path):
    loaded = load(
        tmp_path,
        preference_row(0),
        "{broken",
        preference_row(2, chosen=[say("")]),
        preference_row(3, rejected=[say("Seven. " * 40)]),
        preference_row(4, score_chosen=None),
    )
    trees, report = data.build_trees(loaded, bpe_tokenizer(), max_length=64, needs_scores=True)
    assert (report.rows_in, report.rows_used, report.pairs) == (5, 2, 2)
    assert report.set_aside == {"broken_line": 1, "empty_response": 1, "nan_score": 1}
    assert report.examples["empty_response"][0]["line"] == 3
    assert report.examples["nan_score"][0]["line"] == 5
    assert "How do I boil egg number 4?" in report.examples["nan_score"][0]["excerpt"]
    assert (report.prompts_cut, report.responses_cut, report.ends_of_turn_lost) == (0, 1, 1)
    assert report.responses == 4 and report.longest == 64
    assert report.prompt_tokens == sum(len(tree.prompt_ids) for tree in trees)
    assert report.response_tokens == sum(len(ids) for t in trees for ids in t.response_ids)
    mean = sum(len(tree.response_ids[1]) for tree in trees) / 2
    assert report.mean_rejected_tokens == mean
    assert report.sources["a"].set_aside == report.set_aside
    assert [tree.row_id for tree in trees] == ["a:1", "a:4"]


def test_json_and_summary(tmp_path, capsys):
    loaded = load(tmp_path, preference_row(0), preference_row(1, chosen=[say("")]))
    _, report = data.build_trees(loaded, bpe_tokenizer())
    report.to_json(tmp_path / "data_report.json")
    written = json.loads((tmp_path / "data_report.json").read_text())
    assert written == report.to_dict()
    assert written["sources"]["a"]["format"] == "preference" and written["rows_in"] == 2
    report.print()
    shown = capsys.readouterr().out
    assert "read a as preference" in shown and "1 of 2 rows used, 1 pairs" in shown
    assert "empty_response 1" in shown


def test_at_most_three_examples_for_a_reason(tmp_path):
    rows = [preference_row(n, chosen=[say("")]) for n in range(9)]
    report = data.report(load(tmp_path, preference_row(0), *rows), bpe_tokenizer())
    assert report.set_aside == {"empty_response": 9}
    assert [example["line"] for example in report.examples["empty_response"]] == [2, 3, 4]


def test_strict_stops_on_a_row_set_aside(tmp_path):
    loaded = load(tmp_path, preference_row(0), preference_row(1, chosen=[say("")]))
    with pytest.raises(DataError, match=r"1 of 2 rows .* empty_response 1; a:2"):
        data.build_trees(loaded, bpe_tokenizer(), strict=True)
    fine = load(tmp_path, preference_row(0), name="b.jsonl")
    assert len(data.build_trees(fine, bpe_tokenizer(), strict=True)[0]) == 1


def test_no_usable_row_lists_the_reasons(tmp_path):
    rows = [preference_row(0, chosen=[say("")]), preference_row(1, chosen=[say("No idea.")])]
    loaded = load(tmp_path, *rows, "{")
    with pytest.raises(
        DataError, match="no usable row of 3: broken_line 1, chosen_equals"
    ) as caught:
        data.build_trees(loaded, bpe_tokenizer())
    assert "\n" not in str(caught.value)
    assert data.report(loaded, bpe_tokenizer()).rows_used == 0


def test_scores_that_are_needed(tmp_path):
    bare = {"prompt": [ask("Q")], "chosen": [say("yes")], "rejected": [say("no")]}
    scored = load(tmp_path, preference_row(0), name="with.jsonl")
    without = load(tmp_path, bare, name="without.jsonl")
    assert data.build_trees(scored, bpe_tokenizer(), needs_scores=True)[0][0].scores_R == (8.0, 3.0)
    with pytest.raises(DataError, match=r"'without' has none: row without:1 .*score_chosen"):
        data.build_trees(without, bpe_tokenizer(), needs_scores=True)
    both = data.load([tmp_path / "with.jsonl", tmp_path / "without.jsonl"])
    with pytest.raises(DataError, match="'without'"):
        data.build_trees(both, bpe_tokenizer(), needs_scores=True)
    mixed = load(tmp_path, bare, preference_row(1), preference_row(2), name="mixed.jsonl")
    _, report = data.build_trees(mixed, bpe_tokenizer(), needs_scores=True)
    assert report.set_aside == {"missing_score": 1}
    nan = [preference_row(n, score_chosen=float("nan")) for n in range(3)]
    with pytest.raises(DataError, match="no usable row of 3: nan_score 3"):
        data.build_trees(load(tmp_path, *nan, name="nan.jsonl"), bpe_tokenizer(), needs_scores=True)


def test_plain_strings_beside_a_template_are_noted(tmp_path):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    report = data.report(load(tmp_path, row), bpe_tokenizer())
    assert any("plain strings" in note for note in report.notes)
    assert not data.report(load(tmp_path, row), bpe_tokenizer(template=None)).notes


def test_ties_drawn_by_position_are_noted(tmp_path):
    rows = [
        {"prompt": "Q", "responses": ["a", "b"], "scores": scores} for scores in ([1, 1], [2, 1])
    ]
    loaded = load(tmp_path, *rows)
    report = data.report(loaded, bpe_tokenizer())
    assert report.drawn_ties == 1 and any("ties=drop" in line for line in report.lines())
    dropped = data.report(loaded, bpe_tokenizer(), ties="drop")
    assert dropped.drawn_ties == 0 and dropped.set_aside == {"tie": 1}


def test_rows_with_an_evaluation_prompt_are_set_aside(tmp_path):
    prompts = write_rows(
        tmp_path / "eval.jsonl",
        [{"prompt": "How  do I BOIL egg\nnumber 3?"}, {"turns": ["Hi", "x"]}, {"prompt": "Q"}],
    )
    hidden = [say("They asked: how do i boil egg number 3? I said: in water.")]
    loaded = load(
        tmp_path,
        preference_row(3),
        preference_row(4),
        preference_row(5, chosen=hidden),
        preference_row(6, prompt=[ask(" hi ")]),
        preference_row(7, prompt=[ask("hi there")]),
        decontaminate=[str(prompts)],
    )
    assert [(row.line, row.reason) for row in loaded.set_aside] == [
        (line, "contaminated") for line in (1, 3, 4)
    ]
    bad = write_rows(tmp_path / "none.jsonl", [{"answer": "x"}])
    with pytest.raises(DataError, match="no column with prompts"):
        load(tmp_path, preference_row(0), decontaminate=[str(bad)])


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.text(st.characters(exclude_categories=()), max_size=12),
        st.sampled_from(["assistant", "user", "role", "content", "", " ", "\n", "\ud800", "<eos>"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "x", "tool_calls"]), inner, max_size=3),
    ),
    max_leaves=6,
)
COLUMNS = [
    *("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "prompt_id"),
    *("tools", "chat_template_kwargs", "extra"),
]


@st.composite
def damaged_rows(draw):
    """A good row with one to three fields replaced by anything or removed, or a cut line."""
    row = preference_row(draw(st.integers(0, 3)))
    for column in draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=3)):
        if draw(st.booleans()):
            row[column] = draw(JUNK)
        else:
            row.pop(column, None)
    line = json.dumps(row)
    return line[: draw(st.integers(1, len(line)))] if draw(st.integers(0, 5)) == 0 else line


@given(st.lists(damaged_rows(), min_size=1, max_size=8), st.booleans(), st.integers(8, 80))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_rows_are_used_or_set_aside(tmp_path, lines, needs_scores, max_length):
    tokenizer = bpe_tokenizer()
    good = [json.dumps(preference_row(n)) for n in range(9, 19)]
    loaded = data.load(write_rows(tmp_path / "a.jsonl", [*good, *lines]))
    report = data.report(loaded, tokenizer, needs_scores=needs_scores, max_length=max_length)
    assert report.rows_in == len(good) + len(lines)
    assert report.rows_used + sum(report.set_aside.values()) == report.rows_in
    report.to_json()
