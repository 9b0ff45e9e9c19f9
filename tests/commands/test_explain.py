"""`penchant explain`: the numbers are those of training, and every token is accounted for."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import penchant
from penchant import cli, data, weights
from penchant.commands._explain_screen import print_explanation
from penchant.data.single import single_row
from penchant.errors import DataError, RecipeError
from penchant.models.load import load_causal_lm, load_tokenizer
from penchant.models.save import save_model
from penchant.pages.explain import Explanation, ResponseView, TokenView, explain_page, visible
from tests.commands.world import pair, recipe, write_rows, write_world
from tests.data.samples import ask, bpe_tokenizer, preference_row, say, spaced_tokenizer
from tests.pages.browsing import EVIL, Outline, assert_fits, without_policy
from tests.tiny import naive_logps, tiny_model, tiny_tokenizer

ODD = "tab\there, nul\x00, \u202ertl\u202c مرحبا 🙂\n\nend"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    save_model(tiny_model(seed=5), tiny_tokenizer(), folder / "other")
    rows = [pair(0) | {"prompt": [ask(EVIL)], "rejected": [say(ODD)]}]
    write_rows(folder / "odd.jsonl", [*rows, pair(1) | {"chosen": [say(" ")]}])
    return folder


def explain(world: Path, row: int | str = 3, **changes: Any) -> dict[str, Any]:
    return penchant.run("explain", None, recipe(world, **changes) | {"row": row})


def tree_of(world: Path, row: int, **settings: Any) -> Any:
    loaded = data.load(world / "pairs.jsonl")
    tokenizer = load_tokenizer(str(world / "model"))
    trees, _ = data.build_trees(loaded, tokenizer, max_length=64, **settings)
    return next(tree for tree in trees if tree.row_id == f"pairs:{row}")


def test_numbers_are_those_of_the_two_models(world: Path) -> None:
    found = explain(world, reference=str(world / "other"), objective={"name": "dpo", "beta": 0.3})
    tree = tree_of(world, 3)
    assert found["row_id"] == "pairs:3" and found["pairs"] == [[0, 1]]
    sums = []
    for name, model in (("policy", "model"), ("reference", "other")):
        loaded = load_causal_lm(str(world / model))
        with torch.no_grad():
            expected = [naive_logps(loaded, tree, side).tolist() for side in (0, 1)]
        for ours, theirs in zip(found[name], expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
        sums.append([sum(side) for side in expected])
    rewards = [0.3 * (policy - reference) for policy, reference in zip(*sums, strict=True)]
    assert found["chosen_reward"][0] == pytest.approx(rewards[0], abs=1e-4)
    assert found["rejected_reward"][0] == pytest.approx(rewards[1], abs=1e-4)
    loss = math.log1p(math.exp(-(rewards[0] - rewards[1])))
    assert found["loss"][0] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("adapter", [None, {"r": 4, "alpha": 8}])
def test_the_policy_as_it_starts_is_its_own_reference(
    world: Path, adapter: dict[str, Any] | None
) -> None:
    changes = {"model__adapter": adapter} if adapter else {}
    found = explain(world, **changes)
    assert found["policy"] == [pytest.approx(side, abs=1e-5) for side in found["reference"]]
    assert found["loss"][0] == pytest.approx(math.log(2), abs=1e-5)


def test_weights_marks_and_soft_labels(world: Path) -> None:
    bmc = {"name": "mmpo", "beta": 0.2, "bt_beta": 0.5, "token_weights": {"name": "bmc"}}
    found = explain(world, objective=bmc)
    tree = tree_of(world, 3)
    tokenizer = load_tokenizer(str(world / "model"))
    weighting = weights.load("bmc")
    marks = weighting.mark(*tree.response_ids, weighting.ignored_ids(tokenizer))
    for side, flags in enumerate((marks.chosen, marks.rejected)):
        expected = [
            1 + flag * min(math.exp(-logp), 2.0)
            for flag, logp in zip(flags, found["policy"][side], strict=True)
        ]
        assert found["weights"][0][side] == pytest.approx(expected, rel=1e-6)
    assert max(found["weights"][0][0]) > 1
    gap = pair(2)["score_chosen"] - pair(2)["score_rejected"]
    assert found["soft_label"] == [pytest.approx(1 / (1 + math.exp(-0.5 * gap)))]


def test_an_sft_row_has_a_loss_and_no_pair(world: Path) -> None:
    found = explain(world, data=str(world / "chats.jsonl"), objective="sft")
    assert found["pairs"] == [] and found["reference"] is None
    assert found["loss"] == [pytest.approx(-sum(found["policy"][0]) / len(found["policy"][0]))]


def test_without_weights_the_tokens_are_shown_and_it_says_so(
    world: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(world / "model", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    found = explain(world, model=str(tmp_path / "bare"))
    assert "loss" not in found and found["response_tokens"] == [
        len(ids) for ids in tree_of(world, 3).response_ids
    ]
    assert "! tokens only:" in capsys.readouterr().out
    assert "loss" not in explain(world, tokens_only=True)
    assert "tokens_only" in capsys.readouterr().out


def test_rows_are_found_by_number_and_by_id(world: Path) -> None:
    held_out = {"data__eval": str(world / "eval.jsonl"), "tokens_only": True}
    assert explain(world, "eval:2", **held_out)["row_id"] == "eval:2"
    assert explain(world, 2, **held_out)["row_id"] == "pairs:2"
    both = [str(world / "pairs.jsonl"), str(world / "eval.jsonl")]
    with pytest.raises(DataError, match="in several data sets; name one: row=pairs:2, eval:2"):
        explain(world, 2, data=both, tokens_only=True)
    with pytest.raises(DataError, match="no row 25; there are 24, pairs:1 to pairs:24"):
        explain(world, 25)
    with pytest.raises(DataError, match="row odd:2 is set aside: empty_response"):
        explain(world, 2, data=str(world / "odd.jsonl"))
    with pytest.raises(RecipeError, match=r"FILE\.html"):
        explain(world, output=str(world / "x.txt"))


def test_the_command_line(world: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    page = tmp_path / "page.html"
    arguments = [f"model={world / 'model'}", f"data={world / 'odd.jsonl'}", "row=1"]
    monkeypatch.setattr(sys, "argv", ["penchant", "explain", *arguments, f"output={page}"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    shown = capsys.readouterr().out
    assert "row odd:1" in shown and f"wrote {page}" in shown
    assert "\x00" not in shown and "\u202e" not in shown and "\u2039U+202E\u203a" in shown
    assert page.stat().st_size < 300_000


@pytest.mark.parametrize("max_length", [30, 48, 64, 500])
@pytest.mark.parametrize("keep", ["keep_end", "keep_start"])
def test_what_is_not_cut_is_what_the_tree_holds(tmp_path: Path, max_length: int, keep: str) -> None:
    rows = [
        preference_row(n, prompt=[ask("Which is larger? " * n)], rejected=[say(ODD * (1 + n))])
        for n in range(1, 6)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    loaded = data.load(tmp_path / "a.jsonl")
    for tokenizer in (bpe_tokenizer(), bpe_tokenizer(has_bos=True)):
        settings = {"max_length": max_length, "truncate_prompt": keep}
        trees, _ = data.build_trees(loaded, tokenizer, **settings)
        assert trees
        for tree in trees:
            single = single_row(loaded, tree.row_id, tokenizer, **settings)
            assert single.tree == tree
            kept = tuple(token.id for token in single.prompt if not token.is_cut)
            assert kept == tree.prompt_ids
            for tokens, ids, mask in zip(
                single.responses, tree.response_ids, tree.response_masks, strict=True
            ):
                assert tuple(token.id for token in tokens if not token.is_cut) == ids
                assert tuple(token.is_scored for token in tokens if not token.is_cut) == mask


def test_a_word_with_the_templates_space_is_content(tmp_path: Path) -> None:
    template = tmp_path / "spaced.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}> {{ m.content }}</s>{% endfor %}"
                        "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
    row = preference_row(1, prompt=[ask("Who?")], chosen=[say("it was")], rejected=[say("me")])
    write_rows(tmp_path / "a.jsonl", [row])
    single = single_row(
        data.load(tmp_path / "a.jsonl"), "a:1", bpe_tokenizer(), chat_template=str(template)
    )
    words = "".join(token.text for token in single.responses[0] if token.is_content)
    assert words.strip() == "it was"


@pytest.mark.parametrize("make", [bpe_tokenizer, spaced_tokenizer])
def test_the_pieces_of_text_make_up_the_whole(tmp_path: Path, make: Any) -> None:
    tokenizer = make()
    template = data.chat_template("chatml")
    row = preference_row(3, chosen=[say(ODD)], prompt=[ask("I said: Put it there. " + ODD)])
    write_rows(tmp_path / "a.jsonl", [row])
    loaded = data.load(tmp_path / "a.jsonl")
    single = single_row(loaded, "a:1", tokenizer, chat_template="chatml")
    whole = tokenizer.apply_chat_template(
        row["prompt"] + row["chosen"], tokenize=False, chat_template=template
    )
    chosen = single.responses[0]
    assert "".join(token.text for token in (*single.prompt, *chosen)) == whole
    words = "".join(token.text for token in single.prompt if token.is_content)
    assert words == row["prompt"][0]["content"]
    assert "".join(token.text for token in chosen if token.is_content) == ODD
    assert all(not token.is_scored for token in single.prompt)
    assert all(token.is_scored for token in chosen)


def test_only_the_assistants_turns_are_scored(tmp_path: Path) -> None:
    row = preference_row(0, chosen=[say("Why?"), ask("Hunger."), say("Boil it.")])
    write_rows(tmp_path / "a.jsonl", [row])
    single = single_row(data.load(tmp_path / "a.jsonl"), "a:1", bpe_tokenizer())
    scored = "".join(token.text for token in single.responses[0] if token.is_scored)
    assert "Why?" in scored and "Boil it." in scored and "Hunger" not in scored


VIEW = Explanation(
    row_id="<i>a:1",
    lead="A lead.",
    prompt=[TokenView(id=1, text=EVIL), TokenView(id=2, text="x", is_cut=True)],
    responses=[
        ResponseView(
            title="Chosen",
            tokens=[
                TokenView(id=3, text="مرحبا", is_scored=True, policy=-1.5, reference=-2.25),
                TokenView(id=4, text="\n", is_scored=True, policy=0.0, weight=1.75, is_marked=True),
                TokenView(id=5, text="<|im_end|>", is_content=False, is_cut=True),
            ],
        )
    ],
    pairs=[("1 over 2", ("0.6931",) * 6)],
    warnings=["tokens only: <no> model"],
)


def test_the_page_shows_every_token_with_its_numbers() -> None:
    page = explain_page(VIEW)
    text = " ".join(Outline(page).texts)
    assert "\u22121.50|\u22122.25" in text and "0 \u00d71.75" in text
    assert "2 tokens, 1 of them cut" in text and "tokens only: <no> model" in text
    assert page.count('class="t cut-off"') == 1
    assert page.count('class="t form cut-off"') == 1
    assert page.count('class="t scored marked"') == 1
    assert page.count("<bdi>") >= 5


def test_the_page_is_safe_in_a_real_browser(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(without_policy(explain_page(VIEW)))
    tree = browser(page, "--dump-dom")
    assert "owned</title>" not in tree and "<script" not in tree and "<img" not in tree


@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_fits_the_window(
    browser: Any,
    tmp_path: Path,
    width: int,
) -> None:
    long = replace(VIEW, prompt=[TokenView(id=1, text="unbroken" * 90)])
    assert_fits(browser, explain_page(long), tmp_path, width)


def test_signs_for_what_has_no_shape() -> None:
    assert visible(" a\tb\n") == "\u2423a\u21e5b\u23ce"
    assert visible("\x00\u200b\u202e\ud800") == (
        "\u2039U+0000\u203a\u2039U+200B\u203a\u2039U+202E\u203a\u2039U+D800\u203a"
    )
    assert visible("é日🙂") == "é日🙂" and visible("") == "··"


def test_kinds_are_told_apart_without_colour() -> None:
    console = Console(width=70, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_explanation(VIEW, console)
    shown = console.export_text()
    assert "{<|im_end|>}" in shown and "[*\u23ce]" in shown and "\u2068مرحبا\u2069" in shown
    assert max(map(cell_len, shown.splitlines())) <= 70
