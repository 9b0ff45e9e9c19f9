"""`penchant data` whole: on files and recipes, what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import penchant
from penchant.commands._data_screen import print_report
from penchant.errors import DataError, ModelError, RecipeError
from penchant.recipe import dump_recipe, load_recipe
from tests.commands.world import pair, recipe, write_rows, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def report(*arguments: str, **changes: Any) -> dict[str, Any]:
    return penchant.run("data", None, [*arguments] or changes)


def test_a_file_alone_is_reported_in_characters(world: Path, capsys: Any) -> None:
    found = report(str(world / "pairs.jsonl"))
    assert (found["rows_in"], found["rows_used"], found["unit"]) == (24, 24, "characters")
    shown = capsys.readouterr().out
    assert "read pairs as preference" in shown and "24 rows = 24 used + 0 set aside" in shown
    assert "lengths are in characters" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_with_a_tokenizer_it_is_what_train_writes(world: Path, tmp_path: Path) -> None:
    changes = recipe(world, data__eval=str(world / "eval.jsonl")) | {
        "output_dir": str(tmp_path / "run")
    }
    penchant.run("train", None, changes)
    written = json.loads((tmp_path / "run" / "data_report.json").read_text())
    typed = load_recipe("train", None, changes)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(typed))
    found = report(str(tmp_path / "recipe.yaml"))
    assert found == written
    assert (found["unit"], found["max_length"], found["eval"]["rows_used"]) == ("tokens", 64, 6)


def test_an_sft_recipe_looks_at_one_response_a_row(world: Path, tmp_path: Path) -> None:
    changes = recipe(world, data=str(world / "chats.jsonl"), sft__train_on="all")
    typed = load_recipe("sft", None, changes)
    (tmp_path / "sft.yaml").write_text(dump_recipe(typed))
    found = report(str(tmp_path / "sft.yaml"))
    assert (found["rows_used"], found["responses"], found["pairs"]) == (24, 24, 0)
    assert set(found["lengths"]) == {"whole", "prompt", "response"}
    auto = report(str(world / "chats.jsonl"), f"tokenizer={world / 'model'}")
    assert auto["responses"] == 24 and auto["length_bias"] is None
    pairs_of_sft = report(str(world / "pairs.jsonl"), f"model={world / 'model'}", "use=chosen")
    assert (pairs_of_sft["responses"], pairs_of_sft["pairs"]) == (24, 0)


def test_the_objective_decides_about_scores(world: Path, tmp_path: Path) -> None:
    mmpo = "objective={name: mmpo, bt_beta: 3}"
    found = report(str(world / "pairs.jsonl"), f"model={world / 'model'}", mmpo)
    labels = found["score_gaps"]["soft_labels"]
    assert labels["bt_beta"] == 3 and sum(labels["histogram"]["counts"]) == 24
    bare = [{key: value for key, value in pair(0).items() if "score" not in key}]
    write_rows(tmp_path / "bare.jsonl", bare)
    with pytest.raises(DataError, match="needs scores"):
        report(str(tmp_path / "bare.jsonl"), mmpo)


@pytest.mark.parametrize("name", ["out", "out.html", "out.json"])
def test_it_writes_where_it_is_told(world: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "deep" / name
    found = report(str(world / "pairs.jsonl"), f"report={target}")
    files = {path.name for path in (tmp_path / "deep").rglob("*") if path.is_file()}
    both = {"data_report.json", "data_report.html"}
    assert files == (both if name == "out" else {name})
    for path in (tmp_path / "deep").rglob("*.json"):
        assert json.loads(path.read_text()) == found
    for path in (tmp_path / "deep").rglob("*.html"):
        assert "<h1>pairs</h1>" in path.read_text()


def test_thresholds_fail_after_all_is_shown_and_written(
    world: Path, tmp_path: Path, capsys: Any
) -> None:
    rows = [pair(0), pair(1), pair(2) | {"rejected": [{"role": "assistant", "content": ""}]}]
    write_rows(tmp_path / "a.jsonl", rows)
    page = tmp_path / "page.html"
    with pytest.raises(DataError, match=r"data\.strict, and 1 of 3 rows"):
        report(str(tmp_path / "a.jsonl"), "data.strict=true", f"report={page}")
    assert page.exists() and "empty response" in capsys.readouterr().out
    tokenizer = f"tokenizer={world / 'model'}"
    arguments = [
        str(tmp_path / "a.jsonl"),
        tokenizer,
        "data.max_length=34",
        "data.max_prompt_length=32",
    ]
    cut = report(*arguments)["responses_cut"]
    assert cut > 0
    with pytest.raises(DataError, match="max_cut_fraction is 0, and"):
        report(*arguments, "data.max_cut_fraction=0")
    changes = recipe(tmp_path, data__max_cut_fraction=0.0)
    changes |= {"data.max_length": 34, "data.max_prompt_length": 32}
    changes |= {"model": str(world / "model"), "data": str(tmp_path / "a.jsonl")}
    with pytest.raises(DataError, match="max_cut_fraction is 0, and"):
        penchant.run("train", None, changes)
    assert not (tmp_path / "run").exists()


def test_evaluation_rows_that_are_trained_on_are_shown(world: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "eval.jsonl", [pair(0), pair(500)])
    found = report(str(world / "pairs.jsonl"), f"data.eval={tmp_path / 'eval.jsonl'}")
    assert (found["eval"]["overlap"]["rows"], found["eval"]["overlap"]["of"]) == (1, 2)
    assert found["eval"]["problems"][0]["name"] == "train_overlap"


def test_a_dry_run_and_errors_write_nothing(world: Path, tmp_path: Path) -> None:
    plan = penchant.run(
        "data", None, [str(world / "pairs.jsonl"), f"report={tmp_path / 'r'}"], dry_run=True
    )
    assert plan["rows_used"] == 24 and len(plan["would_write"]) == 2
    with pytest.raises(RecipeError, match=r"report=.*\.pdf.*FILE.html or FILE.json"):
        report(str(world / "pairs.jsonl"), f"report={tmp_path / 'r.pdf'}")
    with pytest.raises(RecipeError, match="no output to write"):
        report(str(world / "pairs.jsonl"), "format=preference")
    with pytest.raises(ModelError):
        report(str(world / "pairs.jsonl"), f"tokenizer={tmp_path}")
    with pytest.raises(RecipeError, match="besides"):
        report(str(world / "pairs.jsonl"), str(world / "eval.jsonl"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_it_converts(world: Path, tmp_path: Path, name: str) -> None:
    first = report(str(world / "pairs.jsonl"), f"output={tmp_path / name}")
    again = report(str(tmp_path / name))
    assert again["lengths"] == first["lengths"] and again["score_gaps"] == first["score_gaps"]


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"responses": ["a", "b", "c"], "scores": [1, 2, 2]}, "scored"),
        ({"completion": "a", "label": True}, "kto"),
        ({"completion": "a"}, "messages"),
        ({"chosen": "a", "rejected": "b"}, "preference"),
    ],
)
def test_rows_are_converted_to_the_layout_that_holds_them(
    tmp_path: Path, capsys: Any, row: dict[str, Any], format: str
) -> None:
    write_rows(tmp_path / "in.jsonl", [{"prompt": f"p{n}"} | row for n in (1, 2)])
    report(str(tmp_path / "in.jsonl"), f"output={tmp_path / 'out.parquet'}")
    shown = capsys.readouterr().out
    assert "wrote 2 rows of 2 comparisons" in shown and "lost" not in shown
    loaded = penchant.data.load(tmp_path / "out.parquet")
    assert {one.format for one in loaded} == {format}


@pytest.mark.parametrize(
    "given", ["max_cut_fraction=0.1", "overlong=stop", "overlong=drop", "chat_template=chatml"]
)
def test_what_only_tokens_can_decide_asks_for_a_tokenizer(world: Path, given: str) -> None:
    with pytest.raises(RecipeError, match=r"does nothing without tokens; give tokenizer="):
        report(str(world / "pairs.jsonl"), f"data.{given}")
    report(str(world / "pairs.jsonl"), f"data.{given}", f"tokenizer={world / 'model'}",
           "data.max_length=1000")  # fmt: skip


def test_an_output_of_no_kind_is_refused_by_its_own_name(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^[^ ]*out\.doc: ") as caught:
        report(str(world / "pairs.jsonl"), f"output={tmp_path / 'out.doc'}")
    assert "partial" not in str(caught.value) and not list(tmp_path.iterdir())


def test_it_says_what_a_conversion_loses(tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": f"p{n}", "responses": ["a", "b", "c"], "scores": [1, 2, 3]} for n in (1, 2)]
    write_rows(tmp_path / "in.jsonl", rows)
    report(str(tmp_path / "in.jsonl"), f"output={tmp_path / 'out.jsonl'}", "format=preference")
    assert "2 comparisons lost: responses" in capsys.readouterr().out


def test_a_row_cannot_steer_the_terminal(tmp_path: Path, capsys: Any) -> None:
    hostile = pair(0) | {"prompt": [{"role": "user", "content": "\x1b[2J\x1b]0;owned\x07 \u202e"}]}
    write_rows(tmp_path / "a.jsonl", [hostile, hostile])
    assert report(str(tmp_path / "a.jsonl"))["repeats"]["duplicate_rows"] == 1
    bad = hostile | {"score_chosen": None}
    write_rows(tmp_path / "b.jsonl", [pair(0), bad])
    report(str(tmp_path / "b.jsonl"), "objective={name: mmpo, bt_beta: 1}")
    shown = capsys.readouterr().out
    assert "nan score" in shown and "\ufffd[2J\ufffd]0;owned" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_page_on_the_terminal_fits(world: Path, tmp_path: Path, width: int) -> None:
    from penchant import data
    from penchant.models.load import load_tokenizer

    long = pair(1) | {"chosen": [{"role": "assistant", "content": "[bold]x[/] " * 90}]}
    write_rows(tmp_path / "odd.jsonl", [pair(0), pair(0), long])
    loaded = data.load([world / "pairs.jsonl", tmp_path / "odd.jsonl"])
    found = data.report(loaded, load_tokenizer(str(world / "model")), max_length=64, bt_beta=9.0)
    console = Console(width=width, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    print_report(found, "training data", console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= min(width, 100)
    words = " ".join(shown.split())
    assert "27 rows = 27 used" in words and "repeat an earlier one" in words
    assert "lose their end of turn" in words and "length bias" in words
