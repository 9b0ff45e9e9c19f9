"""The reference of evaluations: computed once for all of them, and never where training did it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant import engine
from penchant.errors import DataError, OutOfMemoryError
from penchant.models import load
from penchant.models.save import save_model
from tests.commands.world import one_bit, pair, recipe, write_rows, write_world
from tests.tiny import tiny_tokenizer, vivid_model

ROWS = 12
EVAL_ROWS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("made"), num_rows=ROWS)
    save_model(vivid_model(), tiny_tokenizer(), folder / "policy")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed, with a cache of its own."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders whose weights were read since the list was last cleared."""
    names: list[str] = []
    real = load.load_causal_lm

    def load_causal_lm(path: str, **keywords: Any) -> Any:
        names.append(Path(path).name)
        return real(path, **keywords)

    monkeypatch.setattr(load, "load_causal_lm", load_causal_lm)
    return names


def keys(world: Path, out: str, **changes: Any) -> dict[str, Any]:
    given = {
        "model": str(world / "policy"),
        "reference.path": str(world / "model"),
        "data": str(world / "pairs.jsonl"),
        "data.max_length": 64,
        "token_budget": 512,
        "device": "cpu",
        "output_dir": str(world / out),
    }
    return given | {key.replace("__", "."): value for key, value in changes.items()}


def counts(evaluation: dict[str, Any]) -> tuple[int, int]:
    return evaluation["reference_rows_computed"], evaluation["reference_rows_reused"]


def evaluate(world: Path, out: str, **changes: Any) -> tuple[int, int]:
    """Rows of the reference that were computed, and that were there."""
    given = {key: one for key, one in keys(world, out, **changes).items() if one is not None}
    return counts(penchant.run("evaluate", None, given))


def figures(world: Path, out: str) -> tuple[str, bytes, bytes]:
    """What an evaluation says of the models, and of every pair."""
    folder = world / out
    found = json.loads((folder / "evaluation.json").read_text())["preferences"]
    page = (folder / "evaluation.html").read_bytes()
    return json.dumps(found), (folder / "pairs.jsonl").read_bytes(), page


def pairs_of(world: Path, out: str) -> list[dict[str, Any]]:
    lines = (world / out / "pairs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_second_evaluation_reads_what_another_process_computed(
    world: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{name}={value}" for name, value in keys(world, "one").items()]
    command = [sys.executable, "-m", "penchant", "evaluate", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Reference: {ROWS} rows computed, 0 read from the store" in done.stdout
    first = json.loads((world / "one" / "evaluation.json").read_text())
    assert counts(first) == (ROWS, 0)
    assert evaluate(world, "two") == (0, ROWS)
    assert loaded == ["policy"]
    assert f"Reference: 0 rows computed, {ROWS} read from the store" in capsys.readouterr().out
    assert figures(world, "two") == figures(world, "one")


def test_stored_values_are_those_that_are_computed(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(world, "storing")
    evaluate(world, "stored")
    monkeypatch.setenv("PENCHANT_REFERENCE_CACHE_SIZE", "0")
    assert evaluate(world, "plain") == (ROWS, 0)
    assert evaluate(world, "again") == (ROWS, 0)
    for one, other in zip(pairs_of(world, "stored"), pairs_of(world, "plain"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("kind", ["all weights", "adapter", "named"])
def test_rows_that_training_stored_are_read(world: Path, loaded: list[str], kind: str) -> None:
    changes: dict[str, Any] = {"training__max_steps": 1, "data__eval": str(world / "eval.jsonl")}
    if kind == "adapter":
        changes["model__adapter"] = {"r": 4}
    if kind == "named":
        changes["reference"] = str(world / "policy")
    summary = penchant.run("train", None, recipe(world, **changes))
    assert counts(summary) == (ROWS + EVAL_ROWS, 0)
    own = {"model": str(world / "run"), "reference.path": None, "data.max_length": None}
    loaded.clear()
    assert evaluate(world, "one", **own) == (0, ROWS)
    if kind == "named":
        assert loaded == ["run"]
    assert evaluate(world, "two", **own, data=str(world / "eval.jsonl")) == (0, EVAL_ROWS)
    loaded.clear()
    assert evaluate(world, "three", **own, data=str(world / "eval.jsonl")) == (0, EVAL_ROWS)
    assert loaded == (["run", "model"] if kind == "adapter" else ["run"])  # an adapter has a base


def test_training_reads_rows_that_an_evaluation_stored(world: Path) -> None:
    assert evaluate(world, "one") == (ROWS, 0)
    summary = penchant.run("train", None, recipe(world, training__max_steps=1))
    assert counts(summary) == (0, ROWS)


def test_other_responses_of_a_prompt_make_another_row(world: Path) -> None:
    """Training takes the best and the worst of three, an evaluation all unless it is told."""
    rows = [{"prompt": f"Q{n}", "responses": ["a", "b" * n, "cc"], "scores": [3, 2, 1]}
            for n in range(2, 6)]  # fmt: skip
    write_rows(world / "scored.jsonl", rows)
    data = str(world / "scored.jsonl")
    summary = penchant.run("train", None, recipe(world, data=data, training__max_steps=1))
    assert counts(summary) == (4, 0)
    own = {"model": str(world / "run"), "reference.path": None, "data": data}
    assert evaluate(world, "one", **own) == (4, 0)
    assert evaluate(world, "two", **own) == (0, 4)
    assert evaluate(world, "three", **own, data__pairing="best-vs-worst") == (0, 4)


def test_another_reference_or_dtype_computes_anew(world: Path) -> None:
    save_model(vivid_model(), tiny_tokenizer(), world / "other")
    assert evaluate(world, "one") == (ROWS, 0)
    assert evaluate(world, "bfloat16", reference__dtype="bfloat16") == (ROWS, 0)
    assert evaluate(world, "other-out", reference__path=str(world / "other")) == (ROWS, 0)
    assert evaluate(world, "another-policy", model=str(world / "other")) == (0, ROWS)
    one_bit(world)
    assert evaluate(world, "changed") == (ROWS, 0)
    values = {
        out: [row["reference_chosen"] for row in pairs_of(world, out)]
        for out in ("one", "bfloat16", "other-out", "changed")
    }
    assert values["bfloat16"] != values["one"] != values["other-out"]


def test_only_rows_that_are_lacking_are_computed(world: Path, loaded: list[str]) -> None:
    assert evaluate(world, "one", data=str(world / "eval.jsonl")) == (EVAL_ROWS, 0)
    sets = [str(world / name) for name in ("eval.jsonl", "pairs.jsonl")]
    loaded.clear()
    assert evaluate(world, "two", data=sets) == (ROWS, EVAL_ROWS)
    assert sorted(loaded) == ["model", "policy"]
    write_rows(world / "pairs.jsonl", [pair(n) for n in range(ROWS + 2)])
    loaded.clear()
    assert evaluate(world, "three", data=sets[::-1]) == (2, ROWS + EVAL_ROWS)
    assert sorted(loaded) == ["model", "policy"]


def test_a_model_against_itself_is_a_tie_everywhere(world: Path, loaded: list[str]) -> None:
    """It is computed once, or not at all: sums in another order would make winners."""
    assert evaluate(world, "one", model=str(world / "model"), token_budget=1) == (ROWS, 0)
    assert loaded == ["model"]
    assert evaluate(world, "two", model=str(world / "model")) == (0, ROWS)
    assert loaded == ["model"]
    found = json.loads((world / "two" / "evaluation.json").read_text())
    assert found["preferences"]["sets"][0]["measures"]["implicit_reward"]["accuracy"] == 0.5
    for row in pairs_of(world, "two"):
        assert row["policy_chosen"] == row["reference_chosen"] != 0
        assert row["policy_rejected"] == row["reference_rejected"]


def test_without_a_reference_nothing_is_counted(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(world, "alone", **{"reference.path": None}) == (0, 0)
    assert "read from the store" not in capsys.readouterr().out
    assert not (world / "cache" / "reference").exists()


def test_values_that_are_not_finite_name_their_row_and_are_not_kept(world: Path) -> None:
    model = vivid_model()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    save_model(model, tiny_tokenizer(), world / "broken")
    for out in ("one", "two"):
        with pytest.raises(DataError, match=r"reference of response 1 of pairs:1 is nan"):
            evaluate(world, out, reference__path=str(world / "broken"))
        assert not list((world / "cache" / "reference").glob("*/*.safetensors"))


def test_where_memory_runs_out_it_says_what_to_lower(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(engine.prepare(vivid_model()))

    def run_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kind, "logps", run_out)
    with pytest.raises(OutOfMemoryError, match=r"one row of the reference .*data.max_length$"):
        evaluate(world, "one")
    assert not (world / "one" / "evaluation.json").exists()
