"""`penchant score`: MORE's and DSP's files, what is left out of them, and the plan of a dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import penchant
from penchant.commands import _score_plan
from penchant.generate.row_file import summary_of
from penchant.models.load import load_config
from tests.commands.scoring import candidates, read_rows, write_scoring_world
from tests.commands.world import write_rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scoring_world(tmp_path_factory.mktemp("inputs"), 4)


def given(world: Path, place: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(world / "rm"),
        "data": str(world / "candidates.jsonl"),
        "output": str(place / "out.jsonl"),
        "device": "cpu",
    } | changes


def test_what_is_left_out_is_counted_and_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that a fraction does not draw, and the texts that fill up short rows."""
    texts = [f"\n\nHuman: Hi\n\nAssistant: {one}" for one in ("yes", "no")]
    rows = [{"text": [*texts, "", " "], "score": [n, 2.0, -1, -1]} for n in range(8)]
    write_rows(tmp_path / "in.jsonl", rows)
    data = {"train": {"path": str(tmp_path / "in.jsonl"), "fraction": 0.25}}
    recipe = given(world, tmp_path, data=data)
    left_out = {"rows_left_out": 6, "empty_responses_left_out": 4}
    plan = penchant.run("score", None, recipe, dry_run=True)
    assert left_out.items() <= plan.items() and (plan["rows"], plan["responses"]) == (2, 4)
    summary = penchant.run("score", None, recipe)
    assert left_out.items() <= summary.items()
    assert (summary["rows"], summary["responses"]) == (2, 4)
    assert json.loads(summary_of(tmp_path / "out.jsonl").read_text()) == summary
    said = capsys.readouterr().out
    assert "6 rows left out: not drawn by fraction or rows" in said
    assert "4 responses left out: no text" in said
    assert penchant.run("score", None, recipe) == summary


def test_answers_as_the_original_generates_them(world: Path, tmp_path: Path) -> None:
    """{id, prompt, answer: [...]}, as a list in a .json file; then on to select."""
    rows = [
        {"id": 7, "prompt": "\n\nHuman: say red\n\nAssistant:", "answer": [" red", " blue", ""]},
        {"id": 8, "prompt": "\n\nHuman: say blue\n\nAssistant:", "answer": [" green"]},
    ]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    penchant.run("score", None, given(world, tmp_path, data=str(tmp_path / "answers.json")))
    first, second = read_rows(tmp_path / "out.jsonl")
    assert first["prompt"] == [{"role": "user", "content": "say red"}]
    assert first["responses"] == ["red", "blue", ""] and len(first["scores"]) == 3
    assert (first["id"], second["id"], second["responses"]) == (7, 8, ["green"])
    chosen = {"data": str(tmp_path / "out.jsonl"), "output": str(tmp_path / "best.jsonl")}
    assert penchant.run("select", None, chosen)["candidates"] == 4


def test_a_dry_run_counts_tokens_and_reckons_the_time(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the operations of the layers, written down here, at a rate that is given."""
    monkeypatch.setattr(_score_plan, "matmul_rate", lambda *_: 1e6)
    write_rows(tmp_path / "one.jsonl", [candidates(2)])
    data = str(tmp_path / "one.jsonl")
    plan = penchant.run("score", None, given(world, tmp_path, data=data), dry_run=True)
    tokenizer = AutoTokenizer.from_pretrained(world / "rm")
    row = candidates(2)
    head = len(
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    )
    ends = []
    for response in row["responses"]:
        turns = [*row["prompt"], {"role": "assistant", "content": response}]
        ends.append(len(tokenizer.apply_chat_template(turns, return_dict=False)))
    tokens = head + sum(end - head for end in ends)
    assert plan["num_tokens"] == tokens
    config = load_config(str(world / "rm"))
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    width, inner = config.hidden_size, config.intermediate_size
    layer = width * width * 2 * (1 + kv / heads) + 3 * width * inner
    reach = head * (head + 1) / 2
    reach += sum(end * (end + 1) / 2 - head * (head + 1) / 2 for end in ends)
    operations = config.num_hidden_layers * (2 * layer * tokens + 4 * width * reach)
    assert plan["estimated_seconds"] == pytest.approx(operations / 0.7e6, rel=0.06)

    two = {"model": None, "models": [str(world / "rm"), str(world / "rm2")]}
    both = given(world, tmp_path, data=data) | two
    both = {key: value for key, value in both.items() if value is not None}
    twice = penchant.run("score", None, both, dry_run=True)
    assert twice["num_tokens"] == 2 * tokens
    assert twice["estimated_seconds"] == pytest.approx(2 * plan["estimated_seconds"], rel=0.06)

    beside = {"model": str(world / "model"), "by": "implicit_reward", "beta": 0.1}
    beside["reference"] = str(world / "other")
    policy = penchant.run("score", None, given(world, tmp_path, data=data) | beside, dry_run=True)
    assert policy["num_tokens"] == 2 * tokens
    more = 2 * 2 * config.vocab_size * width * (tokens - head) / 0.7e6
    expected = 2 * operations / 0.7e6 + more
    assert policy["estimated_seconds"] == pytest.approx(expected, rel=0.06)
    assert [path.name for path in tmp_path.iterdir()] == ["one.jsonl"]


def test_many_rows_are_reckoned_from_some(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_score_plan, "matmul_rate", lambda *_: 1e6)
    write_rows(tmp_path / "many.jsonl", [candidates(2)] * 20)
    recipe = given(world, tmp_path, data=str(tmp_path / "many.jsonl"))
    whole = penchant.run("score", None, recipe, dry_run=True)
    monkeypatch.setattr(_score_plan, "_SAMPLED", 7)
    sampled = penchant.run("score", None, recipe, dry_run=True)
    assert sampled["num_tokens"] == whole["num_tokens"]
    assert "all rows" in whole["estimated_by"] and "7 rows" in sampled["estimated_by"]
    assert whole["estimated_seconds"] == sampled["estimated_seconds"] > 0


def test_a_plan_is_given_where_nothing_can_be_reckoned(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("no product\nof that kind")

    monkeypatch.setattr(_score_plan, "matmul_rate", broken)
    plan = penchant.run("score", None, given(world, tmp_path), dry_run=True)
    assert plan["estimated_time"] == "not known: RuntimeError: no product" and plan["rows"] == 4
