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


def test_templates_in_the_wild(tmp_path):
    file = shared_folder() / "data" / "chat_templates.jsonl"
    row = preference_row()
    checked = 0
    for line in file.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        tokenizer = bpe_tokenizer.__wrapped__(has_bos=True)
        # As their README says: indentation and newlines are for the reader only.
        tokenizer.chat_template = found["template"].replace("    ", "").replace("\n", "")
        comparison = read_one(tmp_path, row)
        tree = data.tree(comparison, tokenizer)
        for response, ids in zip(comparison.responses, tree.response_ids, strict=True):
            whole = [*comparison.prompt, *response]
            assert tree.prompt_ids + ids == tuple(
                tokenizer.apply_chat_template(whole, return_dict=False)
            ), found["name"]
        checked += 1
    assert checked == 18
