"""The token rules: what is prompt, what is response, what is scored, what is added."""

from __future__ import annotations

from typing import Any

import pytest

from penchant import data
from penchant.data.render import Renderer
from penchant.data.tokens import tokenise
from penchant.errors import DataError
from penchant.types import Comparison
from tests.data.samples import (
    ask,
    bpe_tokenizer,
    preference_row,
    read_one,
    say,
    spaced_tokenizer,
    whole_ids,
)


def strings(prompt: str, *responses: str) -> Comparison:
    return Comparison(row_id="s:1", prompt=prompt, responses=responses, pairs=((0, 1),))


def conversation(prompt: list, *responses: list) -> Comparison:
    return Comparison(
        row_id="m:1",
        prompt=tuple(prompt),
        responses=tuple(map(tuple, responses)),
        pairs=((0, 1),) if len(responses) > 1 else None,
    )


def test_ids_equal_the_template_of_the_whole(tmp_path):
    tokenizer = bpe_tokenizer()
    comparison = read_one(tmp_path, preference_row())
    tree = data.tree(comparison, tokenizer)
    for response, ids in zip(comparison.responses, tree.response_ids, strict=True):
        assert tree.prompt_ids + ids == whole_ids(tokenizer, comparison.prompt + response)
    text = tokenizer.decode(tree.prompt_ids)
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(tree.response_ids[1]) == "No idea.<|im_end|>\n"
    assert all(map(all, tree.response_masks))


@pytest.mark.parametrize("content", ["", " ", "\n", "<|im_end|>", "🙂", "ا", "a<|im_start|>b"])
def test_ids_equal_the_template_of_the_whole_whatever_is_said(content):
    tokenizer = bpe_tokenizer()
    comparison = conversation(
        [{"role": "system", "content": content}, ask(content + "Which?")],
        [say("Seven" + content)],
        [say(content + "three")],
    )
    tree = data.tree(comparison, tokenizer)
    for response, ids in zip(comparison.responses, tree.response_ids, strict=True):
        assert tree.prompt_ids + ids == whole_ids(tokenizer, comparison.prompt + response)


def test_a_template_without_special_tokens_also_gives_the_whole():
    tokenizer = bpe_tokenizer()
    template = data.chat_template("chatml").replace("<|im_start|>", "[").replace("<|im_end|>", "]")
    comparison = conversation([ask("Which?")], [say("Seven.")], [say(" is larger")])
    (rendered,) = [Renderer(tokenizer, template).render(comparison)]
    (tokens,) = tokenise([rendered], tokenizer)
    for whole, ids in zip(rendered.wholes, tokens.response_ids, strict=True):
        assert tokens.prompt_ids + ids == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_strings_get_bos_and_eos_once():
    tokenizer = bpe_tokenizer(has_bos=True)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tree = data.tree(strings("<bos>Which is larger?", " Seven.<eos>", " three"), tokenizer)
    assert tree.prompt_ids.count(bos) == 1 and tree.prompt_ids[0] == bos
    for ids in tree.response_ids:
        assert ids.count(eos) == 1 and ids[-1] == eos
    plain = data.tree(strings("Which is larger?", " Seven.", " three"), tokenizer)
    assert plain.prompt_ids == tree.prompt_ids and plain.response_ids == tree.response_ids
    assert tokenizer.decode(plain.response_ids[0]) == " Seven.<eos>"


def test_strings_are_not_put_through_the_template():
    tree = data.tree(strings("Which?", " Seven.", " three"), bpe_tokenizer())
    assert bpe_tokenizer().decode(tree.prompt_ids) == "Which?"


def test_without_bos_an_empty_prompt_predicts_nothing():
    with pytest.raises(DataError, match="empty_prompt"):
        data.tree(strings("", "Seven.", "three"), bpe_tokenizer())
    assert data.tree(strings("", "Seven.", "three"), bpe_tokenizer(has_bos=True)).prompt_ids


def unsafe_cut(tokenizer: Any, text: str) -> tuple[str, str]:
    """Two halves of a text between which the whole has no token border."""
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    for place in range(1, len(text)):
        head = tokenizer(text[:place], add_special_tokens=False)["input_ids"]
        if whole[: len(head)] != head:
            return text[:place], text[place:]
    raise AssertionError(f"every cut of {text!r} is safe")


def test_a_token_over_the_border_is_tokenised_apart_and_counted():
    tokenizer = bpe_tokenizer()
    prompt, response = unsafe_cut(tokenizer, "How do I boil an egg? Put it")
    trees, report = data.build_trees([strings(prompt, response, " water")], tokenizer)
    assert report.prefix_retokenised == 1
    assert trees[0].prompt_ids == tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(trees[0].response_ids[0]) == response + "<eos>"


def test_no_space_is_added_where_the_suffix_is_tokenised_apart():
    tokenizer = spaced_tokenizer()
    prompt, response = unsafe_cut(tokenizer, "minutes")
    assert tokenizer.convert_ids_to_tokens(tokenizer(response)["input_ids"])[0].startswith("▁")
    trees, report = data.build_trees([strings(prompt, response, response + " for")], tokenizer)
    assert report.prefix_retokenised == 2
    shown = ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in trees[0].response_ids]
    assert shown == [f"{response}</s>", f"{response}▁for</s>"]


def test_only_assistant_turns_of_a_branch_are_scored():
    tokenizer = bpe_tokenizer()
    comparison = conversation(
        [ask("Which is larger?")],
        [say("Seven."), ask("Thank you. 日本語"), say("You are welcome 🙂.")],
        [say("three"), ask("No."), say("Seven.")],
    )
    tree = data.tree(comparison, tokenizer)
    for response, ids, mask, expected in zip(
        comparison.responses,
        tree.response_ids,
        tree.response_masks,
        [
            "Seven.<|im_end|>\nYou are welcome 🙂.<|im_end|>\n",
            "three<|im_end|>\nSeven.<|im_end|>\n",
        ],
        strict=True,
    ):
        assert tree.prompt_ids + ids == whole_ids(tokenizer, comparison.prompt + response)
        scored = [token for token, is_scored in zip(ids, mask, strict=True) if is_scored]
        assert tokenizer.decode(scored) == expected
        assert mask[-1]


def test_a_branch_may_begin_with_the_user(tmp_path):
    tokenizer = bpe_tokenizer()
    first = [ask("Which?"), say("Seven.")]
    row = {
        "chosen": [*first, ask("Why?"), say("It is larger.")],
        "rejected": [*first, ask("Sure?"), say("No.")],
    }
    tree = data.tree(read_one(tmp_path, row), tokenizer)
    assert tokenizer.decode(tree.prompt_ids).endswith("Seven.<|im_end|>\n")
    ids, mask = tree.response_ids[0], tree.response_masks[0]
    scored = [token for token, is_scored in zip(ids, mask, strict=True) if is_scored]
    assert tokenizer.decode(scored) == "It is larger.<|im_end|>\n"


@pytest.mark.parametrize(
    ("train_on", "scored_text"),
    [("last", "Eight.<|im_end|>\n"), ("all", "Seven.<|im_end|>\nEight.<|im_end|>\n")],
)
def test_sft_scores_the_last_turn_or_all(tmp_path, train_on, scored_text):
    tokenizer = bpe_tokenizer()
    turns = [ask("Which?"), say("Seven."), ask("And now?"), say("Eight.")]
    comparison = read_one(tmp_path, {"messages": [*turns, ask("Thanks")]})
    (tree,), report = data.build_trees([comparison], tokenizer, use="chosen", train_on=train_on)
    ids = tree.prompt_ids + tree.response_ids[0]
    assert ids == whole_ids(tokenizer, turns)
    pairs = zip(tree.response_ids[0], tree.response_masks[0], strict=True)
    assert tokenizer.decode([token for token, scored in pairs if scored]) == scored_text
    assert tree.pairs_P2 == () and report.scored_tokens == sum(tree.response_masks[0])


def test_a_template_that_is_no_prefix_sets_rows_aside_and_stops():
    tokenizer = bpe_tokenizer.__wrapped__()
    # Like templates that open the answer with a thought in the generation prompt only.
    usual = data.chat_template("chatml")
    tokenizer.chat_template = usual.replace("<|im_start|>assistant", "<|im_start|>A")
    assert tokenizer.chat_template != usual
    good = conversation([ask("Which?")], [say("Seven.")], [say("three")])
    with pytest.raises(DataError, match="template_not_prefix"):
        data.build_trees([good], tokenizer)


def test_up_to_one_percent_of_rows_may_not_be_a_prefix():
    tokenizer = bpe_tokenizer.__wrapped__()
    tokenizer.chat_template = (
        "{% if messages[0].content == 'odd' and not add_generation_prompt %}#{% endif %}"
        + data.chat_template("chatml")
    )
    rows = [conversation([ask(f"Which {n}?")], [say("7")], [say("3")]) for n in range(99)]
    odd = conversation([ask("odd")], [say("7")], [say("3")])
    trees, report = data.build_trees([*rows, odd], tokenizer)
    assert len(trees) == 99 and report.set_aside == {"template_not_prefix": 1}
    with pytest.raises(DataError, match="2 of 101 rows"):
        data.build_trees([*rows, odd, odd], tokenizer)


def test_messages_without_a_template_say_what_to_do():
    bare = bpe_tokenizer(template=None)
    comparison = conversation([ask("Which?")], [say("Seven.")], [say("three")])
    with pytest.raises(DataError, match=r"data\.chat_template=chatml"):
        data.tree(comparison, bare)
    assert data.tree(comparison, bare, chat_template="chatml").response_ids


def test_a_template_that_refuses_a_row_sets_it_aside():
    tokenizer = bpe_tokenizer.__wrapped__()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + data.chat_template("chatml")
    )
    good = conversation([ask("Which?")], [say("Seven.")], [say("three")])
    bad = conversation([{"role": "system", "content": "x"}], [say("Seven.")], [say("three")])
    _, report = data.build_trees([good, bad], tokenizer)
    assert report.set_aside == {"template_error": 1}
    assert report.examples["template_error"][0]["detail"] == "no system turn"


def test_half_a_surrogate_pair_that_a_template_prints_is_set_aside(tmp_path):
    tokenizer = bpe_tokenizer.__wrapped__()
    tokenizer.chat_template = "{{ mood }}" + data.chat_template("chatml")
    odd = read_one(tmp_path, preference_row(chat_template_kwargs={"mood": "\ud800"}))
    good = read_one(tmp_path, preference_row(1))
    trees, report = data.build_trees([odd, good], tokenizer)
    assert len(trees) == 1 and report.set_aside == {"bad_text": 1}


def test_responses_without_pairs_or_scores_make_a_tree_without_pairs():
    lone = Comparison(row_id="s:1", prompt="Which?", responses=(" Seven", " three", " two"))
    tree = data.tree(lone, bpe_tokenizer())
    assert tree.pairs_P2 == () and len(tree.response_ids) == 3


def test_tools_reach_the_template(tmp_path):
    tokenizer = bpe_tokenizer.__wrapped__()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools[0]['name'] }}{{ mood }}\n{% endif %}" + data.chat_template("chatml")
    )
    row = preference_row(tools=[{"name": "boil"}], chat_template_kwargs={"mood": "!"})
    tree = data.tree(read_one(tmp_path, row), tokenizer)
    assert tokenizer.decode(tree.prompt_ids).startswith("boil!\n")
