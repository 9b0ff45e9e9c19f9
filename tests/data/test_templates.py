"""Shipped chat templates, and templates found in the wild, keep the prefix rule."""

from __future__ import annotations

import json

import pytest

from penchant import data
from penchant.data.render import shipped_templates
from penchant.errors import DataError, MissingFileError
from tests.data.samples import (
    ask,
    bpe_tokenizer,
    preference_row,
    read_one,
    say,
    spaced_tokenizer,
    write_rows,
)
from tests.shared import shared_folder

SYSTEM = {"role": "system", "content": "Be brief."}
EXPECTED = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Seven.<|im_end|>\n",
    ),
    "zephyr": (
        "<|system|>\nBe brief.<eos>\n<|user|>\nWhich?<eos>\n<|assistant|>\n",
        "Seven.<eos>\n",
    ),
    "llama-2": (
        "<bos>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhich? [/INST]",
        " Seven. <eos>",
    ),
    "alpaca": (
        "<bos>Be brief.\n\n### Instruction:\nWhich?\n\n### Response:\n",
        "Seven.<eos>\n\n",
    ),
    "plain": ("<bos>Be brief.Which?", "Seven.<eos>"),
}


def test_every_shipped_template_is_tested():
    assert set(shipped_templates()) == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_what_a_shipped_template_prints(tmp_path, name):
    tokenizer = bpe_tokenizer(has_bos=True, template=None)
    row = preference_row(prompt=[SYSTEM, ask("Which?")], chosen=[say("Seven.")])
    tree = data.tree(read_one(tmp_path, row), tokenizer, chat_template=name)
    shown = tokenizer.decode(tree.prompt_ids), tokenizer.decode(tree.response_ids[0])
    assert shown == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_several_turns_keep_the_prefix_rule(tmp_path, name):
    tokenizer = bpe_tokenizer(has_bos=True, template=None)
    turns = [ask("Which?"), say("Seven."), ask("Why?"), say("It is larger.")]
    path = write_rows(tmp_path / "sft.jsonl", [{"messages": turns}, {"messages": [SYSTEM, *turns]}])
    for train_on in ("last", "all"):
        trees, report = data.build_trees(
            data.load(path), tokenizer, chat_template=name, use="chosen", train_on=train_on
        )
        assert len(trees) == 2 and not report.set_aside


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("spaced", [False, True])
def test_ids_equal_the_template_of_the_whole_for_both_kinds_of_tokenizer(tmp_path, name, spaced):
    """Tokenising from the prompt's last special token on changes nothing, spaces included."""
    tokenizer = spaced_tokenizer() if spaced else bpe_tokenizer(has_bos=True)
    end = tokenizer.eos_token
    turns = [SYSTEM, ask("Which is larger?"), say(f"three{end}"), ask("  Sure? "), say("Seven.")]
    rejected = [*turns[:-1], say(" no")]
    row = {"chosen": turns, "rejected": rejected}
    trees, report = data.build_trees(
        [read_one(tmp_path, row)], tokenizer, chat_template=name, max_length=4096
    )
    differing = 0
    for whole, ids in zip((turns, rejected), trees[0].response_ids, strict=True):
        expected = tokenizer.apply_chat_template(
            whole, chat_template=data.chat_template(name), return_dict=False
        )
        differing += [*trees[0].prompt_ids, *ids] != expected
    # Only plain prints nothing between prompt and response, so that a token may span the border.
    assert differing == report.prefix_retokenised == (1 if name == "plain" else 0)


def test_a_jinja_file_serves_as_a_template(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}({{ m.content }}){% endfor %}")
    tree = data.tree(read_one(tmp_path, preference_row()), bpe_tokenizer(), chat_template=str(file))
    assert bpe_tokenizer().decode(tree.response_ids[1]) == "(No idea.)"


def test_an_unknown_template_names_the_shipped_ones(tmp_path):
    comparison = read_one(tmp_path, preference_row())
    with pytest.raises(MissingFileError, match="alpaca, chatml, llama-2, plain, zephyr"):
        data.tree(comparison, bpe_tokenizer(), chat_template="chatlm")
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in %}")
    with pytest.raises(DataError, match="not valid Jinja"):
        data.tree(comparison, bpe_tokenizer(), chat_template=str(broken))


CALL = {"type": "function", "function": {"name": "set_timer", "arguments": {"minutes": 8}}}
CALLED = (
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "It boils.", "name": "set_timer"},
)
EMPTY = {"role": "system", "content": ""}
SCRIPTS = "مرحبا \u202eשלום\u202c 日本語 e\u0301 👩\u200d👩\u200d👧 \u2028 \ufeff"
CONVERSATIONS = {
    "one turn": ([ask("Which?")], [say("Seven.")], [say("no")]),
    "system": ([SYSTEM, ask("Which?")], [say("Seven.")], [say("no")]),
    "empty system": ([EMPTY, ask("Which?")], [say("Seven.")], [say("no")]),
    "several turns": (
        [SYSTEM, ask("Which?"), say("Seven."), ask("Why?")],
        [say("It is larger.")],
        [say("no")],
    ),
    "branches of several turns": (
        [ask("Which?")],
        [say("Seven."), ask("Why?"), say("It is larger.")],
        [say("no"), ask("Sure?"), say("yes")],
    ),
    "branches of the user": (
        [ask("Which?"), say("Seven.")],
        [ask("Why?"), say("It is larger.")],
        [ask("Sure?"), say("yes")],
    ),
    "whitespace": ([ask("  Which?\n")], [say("  Seven.\n\n")], [say(" no ")]),
    "other scripts": ([ask(SCRIPTS)], [say(SCRIPTS + "!")], [say("לא")]),
    "text like a template": ([ask("<|im_end|> [INST]")], [say("### Response:\n7")], [say("</s>")]),
    "very long": ([ask("egg " * 5000)], [say("egg " * 9000)], [say("no " * 9000)]),
    "calls in the prompt": ([ask("Boil."), *CALLED], [say("Done.")], [say("no")]),
    "calls in the branch": ([ask("Boil.")], [*CALLED, say("Done.")], [say("no")]),
    "two turns of the user": ([ask("Which?"), ask("Why?")], [say("Seven.")], [say("no")]),
    "a late system turn": ([ask("Which?"), SYSTEM], [say("Seven.")], [say("no")]),
}
CALLS = ("calls in the prompt", "calls in the branch")
UNUSUAL = (*CALLS, "two turns of the user", "a late system turn")
LENIENT = ("granite-3.0-instruct", "qwen2.5-instruct")
"""Of the 18 templates those that do not insist on user and assistant by turns."""


def wild_templates():
    """Name and template, as their README says: indentation and newlines are for the reader only."""
    file = shared_folder() / "data" / "chat_templates.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        yield found["name"], found["template"].replace("    ", "").replace("\n", "")


def expected_reason(template, conversation):
    """Why a row is set aside; None where it is used."""
    if conversation in UNUSUAL and template not in LENIENT:
        return "template_error"
    return None


@pytest.mark.parametrize("conversation", sorted(CONVERSATIONS))
def test_every_kind_of_conversation_in_the_wild(tmp_path, conversation):
    """The prefix rule holds for all 18, or the row is set aside with the reason, none by it."""
    prompt, chosen, rejected = CONVERSATIONS[conversation]
    tools = [{"type": "function", "function": {"name": "set_timer", "parameters": {}}}]
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tools": tools}
    comparison = read_one(tmp_path, row)
    for name, template in wild_templates():
        tokenizer = bpe_tokenizer.__wrapped__(has_bos=True)
        tokenizer.chat_template = template
        report = data.report([comparison], tokenizer, max_length=10**6)
        silent = name == "granite-3.0-instruct" and conversation in CALLS
        assert any("call tools" in note for note in report.notes) == silent, name
        reason = expected_reason(name, conversation)
        assert list(report.set_aside) == ([reason] if reason else []), name
        if reason:
            continue
        tree = data.tree(comparison, tokenizer, max_length=10**6)
        differing = 0
        for response, ids in zip(comparison.responses, tree.response_ids, strict=True):
            whole = tokenizer.apply_chat_template(
                [*comparison.prompt, *response], tools=tools, return_dict=False
            )
            differing += tree.prompt_ids + ids != tuple(whole)
        assert differing == report.prefix_retokenised, name
        assert all(any(mask) for mask in tree.response_masks), name


def test_a_template_that_leaves_out_calls_says_so(tmp_path):
    """ChatML prints an empty turn for a call; whoever calls tools should know."""
    prompt, chosen, rejected = CONVERSATIONS["calls in the branch"]
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    report = data.report([read_one(tmp_path, row)], bpe_tokenizer())
    assert report.rows_used == 1
    assert any("1 rows call tools of which the chat template" in note for note in report.notes)


def test_templates_in_the_wild(tmp_path):
    row = preference_row()
    checked = 0
    for name, template in wild_templates():
        tokenizer = bpe_tokenizer.__wrapped__(has_bos=True)
        tokenizer.chat_template = template
        comparison = read_one(tmp_path, row)
        tree = data.tree(comparison, tokenizer)
        for response, ids in zip(comparison.responses, tree.response_ids, strict=True):
            whole = [*comparison.prompt, *response]
            assert tree.prompt_ids + ids == tuple(
                tokenizer.apply_chat_template(whole, return_dict=False)
            ), name
        checked += 1
    assert checked == 18
