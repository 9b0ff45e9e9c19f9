"""`penchant score` whole: order, columns, models, policies, kills, processes, bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import penchant
from penchant.commands import _score_run
from penchant.errors import DataError, ModelError, RecipeError, SaveError
from penchant.generate import journal as journals
from penchant.generate.journal import folder_of
from penchant.generate.row_file import summary_of
from tests.commands.scoring import candidates, read_rows, write_scoring_world
from tests.commands.world import pair, write_rows
from tests.train.processes import finish, wait_until


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scoring_world(tmp_path_factory.mktemp("score"))


def given(world: Path, place: Path, /, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(world / "rm"),
        "data": str(world / "candidates.jsonl"),
        "output": str(place),
        "device": "cpu",
    } | {key.replace("__", "."): value for key, value in changes.items()}


def score(world: Path, place: Path, /, **changes: Any) -> dict[str, Any]:
    found = given(world, place, **changes)
    return penchant.run("score", None, {key: one for key, one in found.items() if one is not None})


@pytest.fixture(scope="module")
def scored(world: Path) -> list[dict[str, Any]]:
    score(world, world / "scored.jsonl")
    return read_rows(world / "scored.jsonl")


@torch.no_grad()
def by_plain_transformers(path: Path, row: dict[str, Any]) -> list[float]:
    """Each response by itself: the chat template, the model, its one logit."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    found = []
    for response in row["responses"]:
        turns = [*row["prompt"], {"role": "assistant", "content": response}]
        # What follows the end of the turn is no part of it.
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        found.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
    return found


def close(found: Any, expected: Any) -> bool:
    return found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_row_for_each_row_in_order_with_its_columns(world: Path, scored: list[Any]) -> None:
    rows = read_rows(world / "candidates.jsonl")
    assert len(scored) == len(rows)
    for out, row in zip(scored, rows, strict=True):
        assert {**out, "scores": None} == {**row, "scores": None}
        assert len(out["scores"]) == len(row["responses"])
    assert sum(len(set(map(str, row["scores"]))) for row in scored) == sum(
        len(row["scores"]) for row in scored
    )
    summary = json.loads(summary_of(world / "scored.jsonl").read_text())
    assert summary["rows"] == summary["rows_scored"] == 12 and summary["set_aside"] == {}
    assert summary["responses"] == sum(len(row["responses"]) for row in rows)
    assert not folder_of(world / "scored.jsonl").exists()


def test_scores_are_those_of_plain_transformers(world: Path, scored: list[Any]) -> None:
    for row in scored[1:4]:
        assert close(row["scores"], by_plain_transformers(world / "rm", row))


def test_chosen_comes_first_and_given_scores_stay(world: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [pair(n) | {"task": n} for n in range(3)])
    summary = score(world, tmp_path / "out.jsonl", data=str(tmp_path / "pairs.jsonl"))
    out = read_rows(tmp_path / "out.jsonl")
    assert summary["responses"] == 6
    for n, row in enumerate(out):
        source = pair(n)
        assert row["responses"] == [
            source["chosen"][0]["content"],
            source["rejected"][0]["content"],
        ]
        assert row["given_scores"] == [source["score_chosen"], source["score_rejected"]]
        assert (row["row_id"], row["task"]) == (f"pairs:{n + 1}", n)
        assert close(row["scores"], by_plain_transformers(world / "rm", row))


def test_several_models_with_weights(world: Path, tmp_path: Path, scored: list[Any]) -> None:
    models = [
        {"path": str(world / "rm"), "weight": 2},
        {"path": str(world / "rm2"), "weight": -0.5},
    ]
    score(world, tmp_path / "sum.jsonl", model=None, models=models)
    score(world, tmp_path / "two.jsonl", model=str(world / "rm2"))
    alone = [row["scores"] for row in read_rows(tmp_path / "two.jsonl")]
    for row, first, second in zip(
        read_rows(tmp_path / "sum.jsonl"), [one["scores"] for one in scored], alone, strict=True
    ):
        assert close(row["scores_by_model"]["rm"], first)
        assert close(row["scores_by_model"]["rm2"], second)
        expected = [2 * a - 0.5 * b for a, b in zip(first, second, strict=True)]
        assert close(row["scores"], expected)

    standard = score(world, tmp_path / "z.jsonl", model=None, models=models, standardise="zscore")
    rows = read_rows(tmp_path / "z.jsonl")
    flat = torch.tensor([one for row in rows for one in row["scores_by_model"]["rm"]]).double()
    other = torch.tensor([one for row in rows for one in row["scores_by_model"]["rm2"]]).double()
    z = [(x - x.mean()) / x.std(correction=0) for x in (flat, other)]
    assert close([s for row in rows for s in row["scores"]], (2 * z[0] - 0.5 * z[1]).tolist())
    assert standard["models"][0]["mean"] == pytest.approx(float(flat.mean()))


@torch.no_grad()
def test_policies_as_scorers(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "few.jsonl"
    write_rows(data, [candidates(2), candidates(3)])
    found = {}
    for by, more in (
        ("logprob", {}),
        ("logprob_per_token", {}),
        ("implicit_reward", {"reference": str(world / "other"), "beta": 0.25}),
    ):
        output = tmp_path / f"{by}.jsonl"
        score(world, output, model=str(world / "model"), data=str(data), by=by, **more)
        found[by] = [row["scores"] for row in read_rows(output)]
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    models = [AutoModelForCausalLM.from_pretrained(world / name) for name in ("model", "other")]
    for place, row in enumerate(read_rows(data)):
        head = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        for number, response in enumerate(row["responses"]):
            turns = [*row["prompt"], {"role": "assistant", "content": response}]
            ids = torch.tensor([tokenizer.apply_chat_template(turns, return_dict=False)])
            logps = [
                model.eval()(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
                .gather(1, ids[0, 1:, None])[len(head) - 1 :, 0]
                for model in models
            ]  # fmt: skip
            total = float(logps[0].sum())
            assert close(found["logprob"][place][number], total)
            assert close(found["logprob_per_token"][place][number], total / len(logps[0]))
            implicit = 0.25 * float((logps[0] - logps[1]).sum())
            assert close(found["implicit_reward"][place][number], implicit)


def test_the_reference_and_beta_of_a_run(world: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [pair(n) for n in range(16)])
    penchant.run(
        "train",
        None,
        {
            "model": str(world / "model"), "data": str(tmp_path / "pairs.jsonl"),
            "objective.beta": 0.3, "training.learning_rate": 0.01, "training.batch_size": 8,
            "training.device": "cpu", "output_dir": str(tmp_path / "run"),
            "model.adapter": {"r": 2},
        },
    )  # fmt: skip
    run = str(tmp_path / "run")
    summary = score(world, tmp_path / "a.jsonl", model=run, by="implicit_reward")
    assert summary["beta"] == 0.3 and summary["reference"] == str(world / "model")
    # The same reference, loaded beside the policy and not found by switching its adapter off.
    beside = {"reference": str(world / "model"), "reference.dtype": "float32"}
    score(world, tmp_path / "b.jsonl", model=run, by="implicit_reward", **beside)
    first, second = (
        [row["scores"] for row in read_rows(tmp_path / name)] for name in ("a.jsonl", "b.jsonl")
    )
    assert all(close(a, b) for a, b in zip(first, second, strict=True))
    assert max(abs(one) for row in first for one in row) > 0.01


def test_rows_that_cannot_be_scored_stay_in_their_places(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "in.jsonl"
    data.write_text(
        json.dumps(candidates(2)) + "\n{broken\n"
        + json.dumps({**candidates(3), "prompt": 5}) + "\n"
        + json.dumps(candidates(4)) + "\n"
    )  # fmt: skip
    summary = score(world, tmp_path / "out.jsonl", data=str(data))
    out = read_rows(tmp_path / "out.jsonl")
    assert summary["set_aside"] == {"broken_line": 1, "wrong_type": 1}
    assert (summary["rows"], summary["rows_scored"]) == (4, 2)
    assert [row["scores"] is None for row in out] == [False, True, True, False]
    assert [row.get("set_aside", {}).get("reason") for row in out[1:3]] == [
        "broken_line", "wrong_type",
    ]  # fmt: skip
    assert out[1]["row_id"] == "in:2" and out[2]["row_id"] == "prompts:3"
    with pytest.raises(DataError, match=r"in:2 cannot be scored .broken_line.*data\.strict"):
        score(world, tmp_path / "strict.jsonl", data=str(data), data__strict=True)


def test_what_is_cut_is_counted_and_a_score_depends_on_its_own_row_only(
    world: Path, tmp_path: Path
) -> None:
    whole = score(world, tmp_path / "a.jsonl", data__max_length=60, data__max_prompt_length=20)
    assert whole["responses_cut"] > 0 and whole["prompts_cut"] >= whole["responses_cut"]
    row = candidates(3)
    write_rows(tmp_path / "one.jsonl", [{**row, "responses": row["responses"][1:2]}])
    score(world, tmp_path / "b.jsonl", data=str(tmp_path / "one.jsonl"),
          data__max_length=60, data__max_prompt_length=20)  # fmt: skip
    alone = read_rows(tmp_path / "b.jsonl")[0]["scores"]
    assert close(read_rows(tmp_path / "a.jsonl")[3]["scores"][1:2], alone)


def test_done_is_done_and_other_work_is_refused(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = score(world, output)
    before = output.stat().st_mtime_ns
    assert score(world, output, token_budget=64) == first
    assert output.stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match="differs in models"):
        score(world, output, model=str(world / "rm2"))
    with pytest.raises(RecipeError, match=r"differs in data\.max_length"):
        score(world, output, data__max_length=30)
    rescored = score(
        world, tmp_path / "both.jsonl", model=str(world / "rm2"), data=str(output), column="second"
    )
    row = read_rows(tmp_path / "both.jsonl")[2]
    assert rescored["rows_scored"] == 12 and row["scores"] == read_rows(output)[2]["scores"]
    assert len(row["second"]) == 3 and row["second"] != row["scores"]
    with pytest.raises(DataError, match="has a column 'second' already"):
        score(world, tmp_path / "c.jsonl", data=str(tmp_path / "both.jsonl"), column="second")


def test_a_full_disk_loses_nothing(
    world: Path, tmp_path: Path, scored: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [3]

    def until_full(handle: int, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(journals.os, "write", until_full)
        with pytest.raises(SaveError, match=r"no space left.*run the same command"):
            score(world, tmp_path / "out.jsonl")
    (part,) = folder_of(tmp_path / "out.jsonl").glob("part-*")
    assert len(part.read_bytes().splitlines()) == 3
    with part.open("ab") as file:
        file.write(b"0000 half a li")
    score(world, tmp_path / "out.jsonl")
    again = read_rows(tmp_path / "out.jsonl")
    assert [row["row_id"] for row in again] == [row["row_id"] for row in scored]
    assert all(close(a["scores"], b["scores"]) for a, b in zip(again, scored, strict=True))


def test_a_second_run_says_that_nothing_was_left_to_do(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = score(world, tmp_path / "out.jsonl")
    assert "wrote 12 rows" in capsys.readouterr().out
    assert score(world, tmp_path / "out.jsonl") == first
    said = capsys.readouterr().out
    assert "complete already, 12 rows" in said and "wrote" not in said


def test_a_file_that_changes_meanwhile_is_noticed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "in.jsonl"
    write_rows(data, [candidates(2), candidates(3)])
    real = _score_run.score_rows

    def meddled(*args: Any) -> Any:
        write_rows(data, [candidates(2), candidates(4)])
        return real(*args)

    monkeypatch.setattr(_score_run, "score_rows", meddled)
    with pytest.raises(DataError, match="changed while it was scored"):
        score(world, tmp_path / "out.jsonl", data=str(data))
    assert not (tmp_path / "out.jsonl").exists()


def started(world: Path, output: Path, *, before: str = "", **changes: Any) -> Any:
    arguments = [f"{k}={json.dumps(v)}" for k, v in given(world, output, **changes).items()]
    launcher = [sys.executable, *before.split(), "-m", "penchant", "score", *arguments]
    return subprocess.Popen(
        launcher, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_two_processes_equal_one(world: Path, tmp_path: Path, scored: list[Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = f"-m torch.distributed.run --nproc_per_node 2 --master_port {port}"
    output = tmp_path / "out.jsonl"
    code, out, err = finish(started(world, output, before=launch))
    assert code == 0, err[-2000:]
    again = read_rows(output)
    strip = [{**row, "scores": 0} for row in again]
    assert strip == [{**row, "scores": 0} for row in scored]
    assert all(close(a["scores"], b["scores"]) for a, b in zip(again, scored, strict=True))
    assert out.count("wrote 12 rows") == 1


def test_a_kill_costs_a_chunk_and_nothing_is_there_twice(world: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    write_rows(data, [candidates(n, 4) for n in range(300)])
    more = {"data": str(data), "token_budget": 128}
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = started(world, output, **more)
        size = _size(output)
        assert wait_until(process, lambda size=size: _size(output) > size + 400)  # type: ignore[misc]
        process.send_signal(number)
        code, _, err = finish(process)
        assert code == (-9 if number == signal.SIGKILL else 143), err
    assert "rows are scored; run the same command to go on" in err
    assert not output.exists()
    summary = score(world, output, **more)
    rows = read_rows(output)
    assert [row["row_id"] for row in rows] == [f"prompts:{n}" for n in range(300)]
    assert summary["responses"] == 1200
    assert all(math.isfinite(one) for row in rows for one in row["scores"])


def _size(output: Path) -> int:
    return sum(part.stat().st_size for part in folder_of(output).glob("part-*"))


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"output": "out.parquet"}, RecipeError, "files that end in"),
        ({"output": "{world}/candidates.jsonl"}, RecipeError, "also what is read"),
        ({"model": None}, RecipeError, "neither given"),
        ({"models": ["a"]}, RecipeError, "both given"),
        ({"model": "{world}/model"}, RecipeError, "language model without a score"),
        ({"by": "logprob"}, RecipeError, "is a reward model"),
        ({"beta": 0.1}, RecipeError, "beta plays no part in by=reward"),
        ({"standardise": "zscore"}, RecipeError, "for several models"),
        ({"column": "prompt"}, RecipeError, "another meaning"),
        ({"model": "{world}/model", "by": "implicit_reward"}, RecipeError, "its reference"),
        ({"model": "{world}/nothing"}, ModelError, "nothing"),
        ({"data.max_length": 10, "data.max_prompt_length": 11}, RecipeError, "above"),
        ({"data": "{world}/rm/config.json"}, DataError, "no format has the columns"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    world: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], told: str
) -> None:
    filled = {
        key: value.replace("{world}", str(world)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(kind, match=told) as raised:
        score(world, tmp_path / "out.jsonl", **filled)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_loads_and_writes_nothing(world: Path, tmp_path: Path) -> None:
    recipe = given(world, tmp_path / "out.jsonl")
    plan = penchant.run("score", None, recipe, dry_run=True)
    assert (plan["rows"], plan["responses"]) == (12, 33)
    assert list(tmp_path.iterdir()) == []
