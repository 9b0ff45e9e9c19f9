"""What is cut where a row is too long, and what is then set aside."""

from __future__ import annotations

import pytest

from penchant import data, weights
from penchant.errors import DataError
from penchant.types import Comparison, PairMarks
from tests.data.samples import ask, bpe_tokenizer, preference_row, read_one, say, write_rows


def strings(prompt, *responses, pairs=((0, 1),), scores=None):
    return Comparison(
        row_id="s:7", prompt=prompt, responses=responses, pairs=pairs, scores=scores, source="s"
    )


def letters(count, letter="q"):
    """Text of `count` tokens: single rare letters that no merge joins."""
    text = letter * count
    ids = bpe_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == count
    return text


def lengths(tree):
    return len(tree.prompt_ids), [len(ids) for ids in tree.response_ids]


def test_nothing_is_cut_up_to_max_length():
    # 6 + 9 letters and EOS; max_prompt_length is not used while the whole fits.
    comparison = strings(letters(6), letters(9, "z"), letters(3, "z"))
    tree = data.tree(comparison, bpe_tokenizer(), max_length=16, max_prompt_length=2)
    assert lengths(tree) == (6, [10, 4])


@pytest.mark.parametrize(
    ("prompt", "responses", "limit", "expected"),
    [
        (10, (9, 3), None, (8, [8, 4])),  # prompt to half of 16, then the response to the rest
        (11, (5, 3), None, (8, [6, 4])),  # the prompt's cut is enough
        (4, (20, 3), None, (4, [12, 4])),  # a short prompt stays whole
        (10, (9, 3), 12, (10, [6, 4])),
    ],
)
def test_the_prompt_is_cut_first_and_then_the_responses(prompt, responses, limit, expected):
    comparison = strings(letters(prompt), *(letters(n, "z") for n in responses))
    eos = bpe_tokenizer().eos_token_id
    tree = data.tree(comparison, bpe_tokenizer(), max_length=16, max_prompt_length=limit)
    assert lengths(tree) == expected
    for ids, mask, count in zip(tree.response_ids, tree.response_masks, responses, strict=True):
        was_cut = len(ids) < count + 1
        assert (ids[-1] == eos) == (not was_cut) and len(mask) == len(ids)


@pytest.mark.parametrize(("keep", "last"), [("keep_end", "j"), ("keep_start", "d")])
def test_which_end_of_a_prompt_stays(keep, last):
    tokenizer = bpe_tokenizer()
    comparison = strings("a!b!c!d!e!f!g!h!i!j", letters(9, "z"), letters(3, "z"))
    whole = data.tree(comparison, tokenizer).prompt_ids
    assert len(whole) == 19
    tree = data.tree(comparison, tokenizer, max_length=14, truncate_prompt=keep)
    assert tree.prompt_ids == (whole[-7:] if keep == "keep_end" else whole[:7])
    assert tokenizer.decode(tree.prompt_ids)[-1] == last


def test_bos_stays_when_the_start_of_a_prompt_is_cut():
    tokenizer = bpe_tokenizer(has_bos=True)
    comparison = strings(letters(10), letters(9, "z"), letters(3, "z"))
    tree = data.tree(comparison, tokenizer, max_length=16)
    assert tree.prompt_ids[0] == tokenizer.bos_token_id
    assert lengths(tree) == (8, [8, 4])


def test_drop_and_stop_instead_of_cutting():
    fits, long = strings("q", "z", "zz"), strings(letters(4), letters(20, "z"), "z")
    too_long = strings(letters(40), "z", "zz")
    rows = [fits, long, too_long]
    trees, report = data.build_trees(rows, bpe_tokenizer(), max_length=16, overlong="drop")
    assert len(trees) == 1 and report.responses_cut == 0
    assert report.set_aside == {"too_long": 1, "prompt_too_long": 1}
    with pytest.raises(DataError, match="s:7: 25 tokens, 4 of them prompt, and max_length is 16"):
        data.build_trees(rows, bpe_tokenizer(), max_length=16, overlong="stop")


def test_no_room_for_a_response_is_prompt_too_long():
    rows = [strings("q", "z", "zz"), strings(letters(40), "z", "zz")]
    _, report = data.build_trees(rows, bpe_tokenizer(), max_length=16, max_prompt_length=16)
    assert report.set_aside == {"prompt_too_long": 1}


def test_responses_that_differ_only_past_the_cut_are_set_aside():
    same = letters(30, "z")
    rows = [strings("q", same + "a", same + "b"), strings("q", "z", "zz")]
    trees, report = data.build_trees(rows, bpe_tokenizer(), max_length=16)
    assert len(trees) == 1 and report.set_aside == {"equal_after_cut": 1}
    trees, _ = data.build_trees(rows, bpe_tokenizer(), max_length=64)
    assert len(trees) == 2


def test_responses_that_the_template_makes_equal_are_set_aside(tmp_path):
    tokenizer = bpe_tokenizer.__wrapped__()
    tokenizer.chat_template = data.chat_template("chatml").replace(
        "message['content']", "message['content'] | trim"
    )
    rows = [preference_row(0), preference_row(1, chosen=[say("No idea. ")])]
    path = write_rows(tmp_path / "a.jsonl", rows)
    _, report = data.build_trees(data.load(path), tokenizer)
    assert report.set_aside == {"chosen_equals_rejected": 1}


def test_one_useless_pair_does_not_lose_the_others():
    long = letters(30, "z")
    comparison = strings(
        "q", "b", long + "a", long + "b", pairs=((0, 1), (1, 2), (0, 2)), scores=(3.0, 2.0, 1.0)
    )
    (tree,), report = data.build_trees([comparison], bpe_tokenizer(), max_length=16)
    assert tree.pairs_P2 == ((0, 1), (0, 2)) and report.pairs_dropped == {"equal_after_cut": 1}
    assert report.pairs == 2 and tree.scores_R == (3.0, 2.0, 1.0)


def test_a_branch_cut_before_its_first_assistant_turn_scores_nothing(tmp_path):
    first = [ask("Which?"), say("Seven.")]
    row = {
        "chosen": [*first, ask(letters(60, "q")), say("It is larger.")],
        "rejected": [*first, ask(letters(60, "z")), say("No.")],
    }
    comparison = read_one(tmp_path, row)
    with pytest.raises(DataError, match="nothing_scored"):
        data.tree(comparison, bpe_tokenizer(), max_length=40)


def test_build_leaves_out_responses_that_no_pair_uses():
    comparison = strings("q", "aa", "bb", "cc", "dd", pairs=None, scores=(2.0, 9.0, 1.0, 5.0))
    tokenizer = bpe_tokenizer()
    (built,), _ = data.build_trees([comparison], tokenizer)
    whole = data.tree(comparison, tokenizer)
    assert whole.pairs_P2 == ((1, 2),) and len(whole.response_ids) == 4
    assert len(built.response_ids) == 2
    (chosen, rejected), *_ = built.pairs_P2
    assert tokenizer.decode(built.response_ids[chosen]) == "bb<eos>"
    assert tokenizer.decode(built.response_ids[rejected]) == "cc<eos>"
    assert (built.scores_R[chosen], built.scores_R[rejected]) == (9.0, 1.0)


def test_sft_takes_the_chosen_response(tmp_path):
    tokenizer = bpe_tokenizer()
    comparison = strings("q", "aa", "bb", "cc", pairs=None, scores=(2.0, 9.0, 1.0))
    pair = read_one(tmp_path, preference_row())
    trees, report = data.build_trees([comparison, pair], tokenizer, use="chosen")
    assert [tree.pairs_P2 for tree in trees] == [(), ()]
    assert tokenizer.decode(trees[0].response_ids[0]) == "bb<eos>"
    assert tokenizer.decode(trees[1].response_ids[0]).startswith("Put egg 0")
    assert report.responses == 2 and report.pairs == 0


def test_marks_are_made_for_every_pair_on_the_cut_ids():
    comparison = strings("q", letters(30, "z"), "zzq", "zq", pairs=((0, 1), (0, 2)))
    (tree,), _ = data.build_trees([comparison], bpe_tokenizer(), max_length=16, mark=weights.mark)
    assert tree.marks is not None and len(tree.marks) == 2
    for (chosen, rejected), marks in zip(tree.pairs_P2, tree.marks, strict=True):
        assert isinstance(marks, PairMarks)
        assert len(marks.chosen) == len(tree.response_ids[chosen])
        assert len(marks.rejected) == len(tree.response_ids[rejected])
        assert any(marks.chosen)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_length": 1},
        {"max_length": 16, "max_prompt_length": 17},
        {"max_prompt_length": 0},
        {"truncate_prompt": "keep"},
        {"overlong": "error"},
        {"train_on": "first"},
        {"use": "both"},
        {"score_transform": "square"},
        {"max_lenght": 16},
    ],
)
def test_settings_that_are_none(fields):
    with pytest.raises(DataError, match=list(fields)[-1]):
        data.tree(strings("q", "a", "b"), bpe_tokenizer(), **fields)
