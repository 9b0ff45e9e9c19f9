"""What the report finds: rows made so that each problem is there a known number of times."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from penchant import data
from penchant.data.reasons import ADVICE
from penchant.errors import DataError
from tests.data.samples import ask, bpe_tokenizer, preference_row, say, write_rows


def reported(tmp_path, *rows, name="a.jsonl", tokenizer=None, **settings):
    loaded = data.load(write_rows(tmp_path / name, list(rows)))
    return data.report(loaded, tokenizer or bpe_tokenizer(), **settings)


def problem(report, name):
    return next(one for one in report.problems if one.name == name)


def names(report):
    return [one.name for one in report.problems]


def swapped(number):
    row = preference_row(number)
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def test_clean_rows_have_no_problem(tmp_path):
    rows = [preference_row(0), preference_row(1, chosen=[say("Cool.")], rejected=[say("Heat it.")])]
    assert names(reported(tmp_path, *rows)) == []


def test_duplicates_and_contradictions(tmp_path):
    rows = [preference_row(0), preference_row(1), preference_row(0), swapped(1), swapped(1)]
    report = reported(tmp_path, *rows)
    # Row 3 repeats row 1, row 5 row 4; rows 2, 4 and 5 hold one question with both answers.
    assert report.repeats.duplicate_rows == 2
    assert report.repeats.contradictory_pairs == 3
    assert (report.repeats.distinct_prompts, report.repeats.most_rows_of_a_prompt) == (2, 3)
    assert problem(report, "duplicate_rows").examples[0]["row_id"] == "a:3"
    assert problem(report, "duplicate_rows").examples[0]["detail"] == "repeats a:1"
    (shown,) = problem(report, "contradictory_pairs").examples
    assert {shown["row_id"], shown["detail"].removeprefix("against ")} == {"a:2", "a:4"}
    assert report.rows_used == 5  # They are shown, not removed.


def test_the_same_answers_to_another_prompt_are_no_contradiction(tmp_path):
    other = swapped(0) | {"prompt": [ask("Something else?")]}
    assert reported(tmp_path, preference_row(0), other).repeats.contradictory_pairs == 0


def test_cut_on_one_side_only_is_a_label_leak_that_is_reported(tmp_path):
    """Trap 19: the end of turn of one side alone would tell chosen from rejected."""
    rows = [
        preference_row(0, chosen=[say("Seven. " * 40)]),
        preference_row(1, rejected=[say("Seven. " * 40)]),
        preference_row(2, chosen=[say("Seven. " * 40)], rejected=[say("Eight. " * 40)]),
        preference_row(3),
    ]
    report = reported(tmp_path, *rows, max_length=64)
    assert report.one_sided_cuts == {"chosen": 1, "rejected": 1}
    assert (report.responses_cut, report.ends_of_turn_lost) == (4, 4)
    found = problem(report, "one_sided_cuts")
    assert [one["row_id"] for one in found.examples] == ["a:1", "a:2"]
    assert "overlong=drop" in found.advice
    dropped = reported(tmp_path, *rows, max_length=64, overlong="drop")
    assert dropped.one_sided_cuts == {"chosen": 0, "rejected": 0}
    assert dropped.set_aside == {"too_long": 3} and dropped.responses_cut == 0


def test_pairs_equal_after_the_cut_are_set_aside_and_told(tmp_path):
    """Trap 18: sides that differ only beyond max_length teach nothing, and are not trained on."""
    same = "Seven is larger than three. " * 20
    rows = [
        preference_row(n, chosen=[say(same + "yes")], rejected=[say(same + "no")]) for n in range(8)
    ]
    report = reported(tmp_path, preference_row(9), *rows, max_length=64)
    assert report.set_aside == {"equal_after_cut": 8} and report.rows_used == 1
    found = problem(report, "equal_after_cut")
    assert found.level == "warning" and found.examples[0]["row_id"] == "a:2"
    limit = report.lengths["whole"].longest
    assert f"data.max_length={limit} would cut nothing" in found.advice
    whole = reported(tmp_path, preference_row(9), *rows, max_length=limit)
    assert (whole.rows_used, whole.set_aside, whole.responses_cut) == (9, {}, 0)


def test_cuts_come_with_the_limit_that_would_cut_little(tmp_path):
    rows = [preference_row(n) for n in range(99)]
    rows.append(preference_row(99, chosen=[say("Seven. " * 300)]))
    report = reported(tmp_path, *rows, max_length=20)
    limits = {one.max_length: one.rows_cut for one in report.limits}
    whole = [len(t.prompt_ids) + max(map(len, t.response_ids)) for t in uncut(tmp_path)]
    for limit, count in limits.items():
        assert count == sum(one > limit for one in whole)
    assert limits[20] == 100 and limits[max(whole)] == 0
    gentle = min(limit for limit, count in limits.items() if count <= 1)
    advice = problem(report, "responses_cut").advice
    assert advice.startswith(f"data.max_length={gentle} would cut 1 % of the rows; 20 cuts 100 %")


def uncut(tmp_path):
    loaded = data.load(tmp_path / "a.jsonl")
    return data.build_trees(loaded, bpe_tokenizer(), max_length=10**6)[0]


def test_more_cuts_than_allowed_stop_the_run(tmp_path):
    rows = [preference_row(n) for n in range(3)]
    rows.append(preference_row(3, chosen=[say("Seven. " * 40)]))
    loaded = data.load(write_rows(tmp_path / "a.jsonl", rows))
    assert data.build_trees(loaded, bpe_tokenizer(), max_length=64, max_cut_fraction=0.125)
    with pytest.raises(DataError, match=r"max_cut_fraction is 0.1, and 1 of 8 .*data.max_length="):
        data.build_trees(loaded, bpe_tokenizer(), max_length=64, max_cut_fraction=0.1)


def test_a_prompt_that_is_cut(tmp_path):
    long = preference_row(0, prompt=[ask("Which is larger? " * 60)])
    report = reported(tmp_path, long, preference_row(1), max_length=80)
    assert problem(report, "prompts_cut").count == report.prompts_cut == 1
    assert report.lengths["prompt"].longest > 80 >= report.longest


def test_a_template_applied_before_is_found(tmp_path):
    """The words hold the template's own tokens, and the end of turn comes twice."""
    done = [say("Boil it.<|im_end|>")]
    report = reported(tmp_path, preference_row(0, chosen=done), preference_row(1))
    assert (report.special_in_text, report.double_ends) == (1, 1)
    assert problem(report, "special_in_text").examples[0]["detail"] == "<|im_end|>"
    assert problem(report, "double_ends").examples[0]["row_id"] == "a:1"


def test_bos_twice_is_found(tmp_path):
    tokenizer = bpe_tokenizer(has_bos=True, template=None)
    rows = [
        {"prompt": "<bos><bos>Q: ", "chosen": "yes", "rejected": "no"},
        {"prompt": "Q: ", "chosen": "<bos>yes", "rejected": "no"},
        {"prompt": "<bos>Q: ", "chosen": "yes", "rejected": "no"},
        {"prompt": "Q: ", "chosen": "yes", "rejected": "no<eos>"},
    ]
    report = reported(tmp_path, *rows, tokenizer=tokenizer)
    assert (report.double_bos, report.double_ends) == (2, 0)
    assert [one["row_id"] for one in problem(report, "double_bos").examples] == ["a:1", "a:2"]


def test_length_bias_is_told_where_it_is_there(tmp_path):
    rows = [preference_row(n) for n in range(30)]
    report = reported(tmp_path, *rows)
    assert report.length_bias.length_only_accuracy == 1.0
    assert "chosen is" in problem(report, "length_bias").text
    trees = uncut(tmp_path)
    means = [sum(len(tree.response_ids[side]) for tree in trees) / 30 for side in (0, 1)]
    assert [report.mean_chosen_tokens, report.mean_rejected_tokens] == pytest.approx(means)
    balanced = [swapped(n) if n % 2 else preference_row(n) for n in range(30)]
    assert "length_bias" not in names(reported(tmp_path, *balanced))


def test_scores_negative_gaps_ties_and_saturation(tmp_path):
    rows = [preference_row(n, score_chosen=8.0) for n in range(6)]
    rows += [preference_row(6, score_chosen=3.0), preference_row(7, score_chosen=1.0)]
    report = reported(tmp_path, *rows, bt_beta=5.0)
    gaps = report.score_gaps
    assert (gaps.pairs, gaps.ties, gaps.negative) == (8, 1, 1)
    assert gaps.soft_labels.saturated == 7
    assert problem(report, "saturated_labels").advice.startswith("lower objective.bt_beta; 0.44 ")
    assert problem(report, "ties").count == problem(report, "negative_gaps").count == 1
    assert reported(tmp_path, *rows).score_gaps.soft_labels is None


def test_train_and_evaluation_are_compared(tmp_path):
    train = data.load(write_rows(tmp_path / "t.jsonl", [preference_row(n) for n in range(4)]))
    other = preference_row(1, chosen=[say("Otherwise.")])
    rows = [preference_row(0), other, preference_row(9)]
    evaluation = data.load(write_rows(tmp_path / "e.jsonl", rows))
    shared = data.overlap(train, evaluation)
    assert (shared.rows, shared.prompts, shared.of) == (1, 2, 3)
    assert shared.examples == ["e:1", "e:2"]


def test_without_a_tokenizer_lengths_are_in_characters(tmp_path):
    rows = [preference_row(0), preference_row(1, chosen=[say("")]), swapped(0), "{"]
    report = data.text_report(data.load(write_rows(tmp_path / "a.jsonl", rows)))
    assert report.unit == "characters" and not report.limits
    assert (report.rows_in, report.rows_used, report.pairs) == (4, 2, 2)
    assert report.set_aside == {"broken_line": 1, "empty_response": 1}
    assert report.repeats.contradictory_pairs == 2
    texts = [preference_row(0)[side][0]["content"] for side in ("chosen", "rejected")]
    assert report.mean_chosen_tokens == sum(map(len, texts)) / 2
    assert report.lengths["prompt"].longest == len("How do I boil egg number 0?")
    assert any("characters" in note for note in report.notes)


def test_sources_have_their_own_lengths(tmp_path):
    write_rows(tmp_path / "a.jsonl", [preference_row(0)])
    write_rows(tmp_path / "b.jsonl", [preference_row(1, rejected=[say("No. " * 9)])])
    loaded = data.load([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    trees, report = data.build_trees(loaded, bpe_tokenizer())
    for name, tree in zip("ab", trees, strict=True):
        part = report.sources[name]
        sides = [len(ids) for ids in tree.response_ids]
        assert [part.chosen_tokens, part.rejected_tokens] == sides
        assert (part.prompt_tokens, part.response_tokens) == (len(tree.prompt_ids), sum(sides))
    assert json.loads(report.to_json())["sources"]["b"]["pairs"] == 1


def test_every_reason_for_setting_a_row_aside_has_advice():
    """By what the source raises, so that a new reason cannot be forgotten."""
    text = "".join(path.read_text() for path in Path(data.__file__).parent.rglob("*.py"))
    raised = set(re.findall(r'(?:RowError|BrokenLine)\(\s*"([a-z_]+)"', text))
    raised |= set(re.findall(r'return "([a-z]+_[a-z_]+)"', text))
    assert len(raised) > 15 and not raised - set(ADVICE)
