"""Reading run folders: what is read, and what is said of folders that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.compare import read_run
from penchant.errors import DataError, MissingFileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder as a finished run leaves it."""
    run = tmp_path / "dpo"
    run.mkdir()
    (run / "recipe.yaml").write_text("objective: {name: dpo, beta: 0.1}\n")
    (run / "summary.json").write_text(json.dumps({"steps": 2, "eval_rewards/accuracies": 0.75}))
    rows = [
        {"step": 0, "eval_loss": 0.6931},
        {"step": 1, "loss": 0.69, "grad_norm": None},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "loss": 0.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_reads_recipe_summary_and_rows(folder: Path) -> None:
    run = read_run(folder)
    assert run.name == "dpo"
    assert run.recipe["objective"] == {"name": "dpo", "beta": 0.1}
    assert run.summary["eval_rewards/accuracies"] == 0.75
    assert len(run.metrics) == 4


def test_a_curve_leaves_out_rows_without_the_metric(folder: Path) -> None:
    run = read_run(folder)
    assert run.curve("loss") == ([1.0, 3.0], [0.69, 0.5])
    assert run.curve("eval_loss") == ([0.0], [0.6931])
    assert run.curve("grad_norm") == run.curve("no such metric") == ([], [])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no run folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["summary.json", "recipe.yaml", "metrics.jsonl"])
def test_an_unfinished_run_names_what_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingFileError, match=f"has no {name}"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{", "summary.json cannot be read"),
        ("summary.json", "[1]", "must hold a mapping, got list"),
        ("recipe.yaml", "a: [1", "recipe.yaml cannot be read"),
        ("metrics.jsonl", '{"step": 1}\n{"st', "metrics.jsonl line 2 is not JSON"),
        ("metrics.jsonl", "\n3\n", "metrics.jsonl line 2 must be a mapping, got int"),
    ],
)
def test_a_broken_file_is_one_line(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_run(folder)
    assert "\n" not in str(error.value)
