"""`penchant select` whole: best of n for SFT, pairs, the curve, MORE's and DSP's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant import data
from penchant.errors import DataError, RecipeError
from penchant.generate.journal import Journal
from penchant.generate.row_file import summary_of
from tests.commands.scoring import read_rows, write_scoring_world
from tests.commands.world import write_rows
from tests.tiny import tiny_tokenizer

Run = Callable[..., dict[str, Any]]


def scored(n: int, scores: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "row_id": f"p:{n}",
        "prompt": [{"role": "user", "content": f"Question {n}?"}],
        "responses": [f"answer {n}.{k}" for k in range(len(scores))],
        "scores": scores,
    } | more


ROWS = [
    scored(0, [1.0, 3.0, 2.0, 3.0], gold=[0.1, 0.2, 0.3, 0.4]),
    scored(1, [5.0, None, 4.0, 0.0], gold=[1, 0, 0, 0]),
    scored(2, [1.0, 1.5, 1.25, 1.0], gold=[0, 1, 1, 0], prompt_id="q2"),
]


@pytest.fixture
def select(tmp_path: Path) -> Run:
    def run(rows: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
        write_rows(tmp_path / "scored.jsonl", ROWS if rows is None else rows)
        given = {"data": str(tmp_path / "scored.jsonl"), "output": str(tmp_path / "out.jsonl")}
        return penchant.run("select", None, given | changes)

    return run


def test_the_best_of_each_row_is_an_sft_row(tmp_path: Path, select: Run) -> None:
    summary = select(gold="gold")
    out = read_rows(tmp_path / "out.jsonl")
    assert [row["messages"][-1]["content"] for row in out] == [
        "answer 0.1",
        "answer 1.0",
        "answer 2.1",
    ]
    assert [row["score"] for row in out] == [3.0, 5.0, 1.5]
    assert [row["gold_score"] for row in out] == [0.2, 1.0, 1.0]
    assert [row["row_id"] for row in out] == ["p:0", "p:1", "p:2"] and out[2]["prompt_id"] == "q2"
    assert (summary["candidates"], summary["candidates_without_score"]) == (11, 1)
    assert summary["tied_best"] == 1 and summary["written"] == 3
    assert json.loads(summary_of(tmp_path / "out.jsonl").read_text()) == summary
    assert data.load(str(tmp_path / "out.jsonl")).formats == {"out": "messages"}


def test_sft_reads_it_with_the_prompt_masked(tmp_path: Path, select: Run) -> None:
    write_scoring_world(tmp_path, 1)
    select()
    best = tmp_path / "out.jsonl"
    plan = penchant.run(
        "sft",
        None,
        {"model": str(tmp_path / "model"), "data": str(best), "output_dir": str(tmp_path / "run"),
         "training.device": "cpu"},
        dry_run=True,
    )  # fmt: skip
    assert plan["rows_used"] == 3
    tokenizer = tiny_tokenizer()
    trees, _ = data.build_trees(data.load(str(best)), tokenizer, use="chosen")
    for tree, row in zip(trees, read_rows(best), strict=True):
        told = tokenizer.decode(tree.response_ids[0])
        assert told.startswith(row["messages"][-1]["content"]) and "Question" not in told
        assert "Question" in tokenizer.decode(tree.prompt_ids)
        assert all(tree.response_masks[0][: len(row["messages"][-1]["content"])])


@pytest.mark.parametrize(
    ("changes", "expected", "dropped"),
    [
        ({}, ["1>0", "0>3", "1>3"], {}),
        (
            {"pairing": "best-vs-rest"},
            ["1>2", "1>0", "0>2", "0>3", "1>2", "1>0", "1>3"],
            {"tie": 1},
        ),
        (
            {"pairing": "all", "min_score_gap": 1.0},
            ["1>2", "1>0", "3>2", "3>0", "2>0", "0>2", "0>3", "2>3"],
            {"score_gap_too_small": 1},
        ),
        ({"pairing": "best-vs-rest", "ties": "keep", "n": 2}, ["1>0", "1>0"], {}),
    ],
)
def test_pairs(
    tmp_path: Path, select: Run, changes: dict[str, Any], expected: list[str], dropped: Any
) -> None:
    summary = select(how="pairs", **changes)
    out = read_rows(tmp_path / "out.jsonl")
    sides = [
        ">".join(row[side][0]["content"].rpartition(".")[2] for side in ("chosen", "rejected"))
        for row in out
    ]
    assert sides == expected
    assert all(row["score_chosen"] >= row["score_rejected"] for row in out)
    assert summary["written"] == len(expected)
    assert summary["rows_used"] + sum(summary["set_aside"].values()) == 3
    if dropped is not None and "min_score_gap" not in changes:
        assert summary["pairs_dropped"] == dropped
    loaded = data.load(str(tmp_path / "out.jsonl"))
    assert loaded.formats == {"out": "preference"} and len(loaded) == len(expected)


def test_equal_texts_make_no_pair(tmp_path: Path, select: Run) -> None:
    row = scored(0, [1.0, 2.0, 3.0])
    row["responses"] = ["same", "", "same"]
    with pytest.raises(DataError, match="chosen_equals_rejected 1"):
        select([row], how="pairs")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_curve_by_hand(select: Run) -> None:
    rows = [scored(n, [1.0, 2.0, 4.0], gold=[9.0, 0.0, 3.0]) for n in range(3)]
    curve = select(rows, gold="gold")["curve"]
    assert curve["n"] == [1, 2, 3] and curve["prompts"] == 3
    assert curve["score"]["mean"] == pytest.approx([7 / 3, 10 / 3, 4])
    assert curve["gold"]["mean"] == pytest.approx([4, 2, 3])
    assert curve["gold_by_itself"]["mean"] == pytest.approx([4, 7, 9])
    assert curve["kl_bound"] == pytest.approx([0, 0.193147, 0.431946], abs=1e-6)
    assert curve["gold"]["gain"] == pytest.approx(-1)
    assert all(low <= high for low, high in curve["score"]["interval"])


def test_the_interval_is_over_prompts_and_short_rows_are_counted(select: Run) -> None:
    rows = [scored(n, [float(n % 5), n % 5 + 1.0]) for n in range(40)] + [scored(99, [1.0])]
    curve = select(rows)["curve"]
    low, high = curve["score"]["interval"][0]
    mean = curve["score"]["mean"][0]
    assert mean == pytest.approx(2.5) and 0.3 < mean - low < 0.6 and 0.3 < high - mean < 0.6
    assert (curve["prompts"], curve["prompts_left_out"]) == (40, 1)


def test_what_cannot_be_used_is_counted(tmp_path: Path, select: Run) -> None:
    rows = [
        *ROWS,
        scored(3, [None, None]),
        {**scored(4, [1.0, 2.0]), "scores": None},
        scored(5, [1.0, 2.0], gold=[1.0]),
        scored(6, [1.0, 2.0], gold=[1, 2], responses=["a", ""]),
    ]
    summary = select(rows, gold="gold")
    assert summary["set_aside"] == {
        "missing_column": 2, "scores_do_not_fit": 1, "empty_response": 1,
    }  # fmt: skip
    assert summary["rows"] == 7 and summary["rows_used"] == summary["written"] == 3


def test_files_of_more_and_dsp(tmp_path: Path, select: Run) -> None:
    """In: {texts, scores} as the original wrote it, {text, score}; out: those that it read."""
    more = [{"texts": ["Q<sep>A1", "Q<sep>A22"], "scores": [[0.1], [0.9]]}]
    outputs = (str(tmp_path / f"{name}.jsonl") for name in "abcdef")

    def selected(*given: Any, **changes: Any) -> list[dict[str, Any]]:
        output = next(outputs)
        select(*given, output=output, **changes)
        return read_rows(Path(output))

    assert selected(more)[0]["completion"] == "A22"
    dsp = [
        {
            "text": [f"\n\nHuman: Hi\n\nAssistant: {one}" for one in ("yes", "no", "well")],
            "score": [0.2, 0.9, 0.4],
        }
    ]
    (row,) = selected(dsp)
    assert row["messages"] == [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "no"},
    ]  # fmt: skip
    (row,) = selected(dsp, format="text-score")
    assert row == {"text": ["\n\nHuman: Hi\n\nAssistant: no"], "score": [0.9]}
    assert selected(format="samples")[1] == {
        "query": "\n\nHuman: Question 1?\n\nAssistant:", "sample_0": "answer 1.0",
    }  # fmt: skip
    chosen = selected(how="pairs", format="hh")[0]["chosen"]
    assert selected(how="pairs", format="dsp", pairing="best-vs-rest")[1] == {
        "query": "Question 1?",
        "responses": {"chosen": "answer 1.0", "rejected": "answer 1.2", "rejected_2": "answer 1.3"},
    }
    assert chosen == "\n\nHuman: Question 0?\n\nAssistant: answer 0.1"


def test_samples_and_domains_can_be_scored_and_selected(tmp_path: Path) -> None:
    world = write_scoring_world(tmp_path, 1)
    write_rows(world / "samples.jsonl", [{"query": "2 + 2 =", "sample_0": " 4", "sample_1": " 5"}])
    domains = {"academy": "A cell.", "normal": "Food.", "business": "A product."}
    write_rows(world / "dsp.jsonl", [{"query": "What is an egg?", "responses": domains}])
    for name, extra, num in (
        ("samples", {}, 2),
        ("dsp", {"data.format": "dsp:normal"}, 3),
    ):
        given = {"model": str(world / "rm"), "data": str(world / f"{name}.jsonl"), "device": "cpu"}
        output = {"output": str(world / f"{name}-scored.jsonl")}
        penchant.run("score", None, given | output | extra)
        (row,) = read_rows(world / f"{name}-scored.jsonl")
        assert len(row["scores"]) == len(row["responses"]) == num
        selecting = {"data": output["output"], "output": str(world / f"{name}-best.jsonl")}
        summary = penchant.run("select", None, selecting)
        assert summary["written"] == 1 and summary["curve"]["n"][-1] == num
        (best,) = read_rows(world / f"{name}-best.jsonl")
        if name == "dsp":
            assert row["responses"][0] == "Food."
            assert row["domains"] == ["normal", "academy", "business"]
            assert domains[best["domain"]] == best["messages"][-1]["content"]
            selecting |= {"how": "pairs", "output": str(world / "pairs.jsonl")}
            penchant.run("select", None, selecting)
            (pair,) = read_rows(world / "pairs.jsonl")
            for side in ("chosen", "rejected"):
                assert domains[pair[f"domain_{side}"]] == pair[side][0]["content"]


def test_the_page(tmp_path: Path, select: Run) -> None:
    summary = select(gold="gold", page=str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("<svg") == 4
    assert "best of 3" in page and "\u00a0%" in page
    for value in (summary["curve"]["score"]["mean"][-1], summary["curve"]["gold"]["mean"][0]):
        assert f">{value:.2f}" in page
    assert page.count('class="band') == 4  # two intervals, each for a desk and for a phone
    one = {"output": str(tmp_path / "one.jsonl"), "page": str(tmp_path / "one.html")}
    alone = select([scored(0, [1.0])], **one)
    assert alone["curve"]["n"] == [1]
    assert "nothing to choose from" in (tmp_path / "one.html").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pairing": "all"}, "pairing is for how=pairs"),
        ({"how": "pairs", "n": 1}, "n=1 leaves nothing"),
        ({"gold": "scores"}, "gold=scores is the column that chooses"),
        ({"page": "page.svg"}, "allowed: FILE.html"),
        ({"format": "orca"}, "format: given orca, allowed for how=best-of-n: candidates"),
        ({"how": "pairs", "format": "messages"}, "allowed for how=pairs: dsp, hh, preference"),
        ({"output": "out.csv"}, "files that end in"),
        ({"how": "worst"}, "how"),
    ],
)
def test_bad_keys(select: Run, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        select(**changes)


def test_an_output_that_is_there_is_kept(
    tmp_path: Path, select: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same again is done already; anything else is refused in one line, and nothing changes."""
    first = select(gold="gold")
    out = tmp_path / "out.jsonl"
    before = out.read_bytes(), out.stat().st_mtime_ns
    capsys.readouterr()
    assert select(gold="gold", page=str(tmp_path / "page.html")) == first
    assert "is complete already; nothing was done" in capsys.readouterr().out
    assert "best of 3" in (tmp_path / "page.html").read_text()
    for rows, changes, differs in (
        (None, {"n": 2, "gold": "gold"}, "n"),
        (None, {"how": "pairs"}, "format, gold, how, pairing, ties"),
        (ROWS[:2], {"gold": "gold"}, "data"),
        (None, {"gold": "gold", "seed": 3}, "seed"),
    ):
        with pytest.raises(RecipeError, match=rf"it differs in {differs}\); give another output"):
            select(rows, **changes)
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine\n")
    with pytest.raises(RecipeError, match="nothing says that this command wrote it; remove it or"):
        select(output=str(mine))
    assert mine.read_text() == "mine\n" and not list(tmp_path.glob(".*"))


def test_a_kill_before_the_summary_is_made_good(tmp_path: Path, select: Run) -> None:
    """The rows are there, and the journal says whose they are: the same command ends the work."""
    whole = select(output=str(tmp_path / "whole.jsonl"))
    Journal.open(tmp_path / "out.jsonl", whole["identity"]).close()
    (tmp_path / "out.jsonl").write_text("half")
    with pytest.raises(RecipeError, match=r"another recipe .it differs in n"):
        select(n=2)
    assert select()["identity"] == whole["identity"]
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert summary_of(tmp_path / "out.jsonl").exists() and not list(tmp_path.glob(".*"))


def test_what_is_left_out_is_counted_and_said(
    tmp_path: Path, select: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"\n\nHuman: Hi\n\nAssistant: {one}" for one in ("yes", "no", "well")]
    rows = [{"text": [*texts, "", " "], "score": [n, 2.0, 3.0, -1, -1]} for n in range(6)]
    source = {"path": str(tmp_path / "scored.jsonl"), "rows": 2}
    page = tmp_path / "page.html"
    summary = select(rows, data={"train": source}, n=2, page=str(page))
    assert (summary["rows"], summary["rows_left_out"]) == (2, 4)
    assert summary["empty_responses_left_out"] == 4 and summary["candidates_left_out"] == 2
    assert json.loads(summary_of(tmp_path / "out.jsonl").read_text()) == summary
    said = capsys.readouterr().out
    for words in ("4 rows left out: not drawn", "4 responses left out: no text", "2 candidates"):
        assert words in said
    assert "4 rows not drawn by fraction or rows" in page.read_text()
    assert "4 responses without text" in page.read_text()
    given = {"data": {"train": source}, "output": str(tmp_path / "other.jsonl")}
    plan = penchant.run("select", None, given, dry_run=True)
    assert (plan["rows_left_out"], plan["empty_responses_left_out"]) == (4, 4)


def test_prompts_that_the_curve_leaves_out_are_said(
    select: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    select([scored(n, [1.0, 2.0]) for n in range(40)] + [scored(99, [1.0])])
    assert "1 prompts are not in it: fewer than 2 candidates" in capsys.readouterr().out


def test_nothing_to_select_from(tmp_path: Path, select: Run) -> None:
    with pytest.raises(
        DataError, match=r"none of 3 rows can be selected from .missing_column 3.*no x"
    ):
        select(by="x")
    assert not (tmp_path / "out.jsonl").exists()
    plan = penchant.run(
        "select", None,
        {"data": str(tmp_path / "scored.jsonl"), "output": str(tmp_path / "out.jsonl")},
        dry_run=True,
    )  # fmt: skip
    assert plan["written"] == 3 and not (tmp_path / "out.jsonl").exists()
