"""`training.extra_metrics`, and objectives that need a token KL, by whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import penchant
from penchant import cli
from penchant.commands import _recompute, verify
from penchant.errors import ModelError
from penchant.models.save import save_model
from tests.commands.world import linked, read_metrics, recipe, write_world
from tests.tiny import tiny_model, tiny_tokenizer
from tests.train.dropped_in import dropped_in

BOTH = ["entropy", "token_kl"]
ADAPTER = {"r": 4, "alpha": 8, "dropout": 0.1}
FAST = {"training__learning_rate": 0.05}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and in it a full run and one of an adapter, to go on from or measure against."""
    folder = write_world(tmp_path_factory.mktemp("made"), num_rows=16)
    train(folder, output_dir=str(folder / "full"), **FAST)
    train(folder, output_dir=str(folder / "lora"), model__adapter=ADAPTER, **FAST)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return linked(made, tmp_path)


def train(world: Path, **changes: Any) -> dict[str, Any]:
    evaluated = {"data__eval": str(world / "eval.jsonl")}
    return penchant.run("train", None, recipe(world, **(evaluated | changes)))


def by_plain_transformers(run: Path, reference: Path) -> dict[str, float]:
    """Means over the scored tokens of the evaluation data, one row at a time, in float64."""
    _, trees = verify._read_trees(run, verify.read_recipe(run))
    model, other = (_recompute.load_plain(str(path)) for path in (run, reference))
    found = [
        _recompute.response_tokens(model, tree, place, other)
        for tree in trees.eval
        for pair in tree.pairs_P2
        for place in pair
    ]
    return {name: torch.cat([one[name] for one in found]).mean().item() for name in BOTH}


REFERENCES: dict[str, tuple[dict[str, Any], str, str]] = {
    "full": ({}, "model", "the starting model, frozen, kept beside the policy (0."),
    "fresh adapter": (
        {"model__adapter": ADAPTER},
        "model",
        "the model with its adapter off, kept beside the policy (0.0 MiB more)",
    ),
    "loaded adapter": (
        {"model": "lora"},
        "lora",
        "the starting model, frozen, kept beside the policy (0.0 MiB more)",
    ),
    "named": ({"reference": "full"}, "full", "the reference '"),
}
"""By kind of run: its recipe, the folder of the reference, and what is said of it."""


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_run_is_measured_against_its_reference(
    world: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, reference, said = REFERENCES[kind]
    folders = {k: str(world / v) if k in ("model", "reference") else v for k, v in changes.items()}
    train(world, training__extra_metrics=BOTH, **folders, **FAST)
    assert f"token_kl: measured against {said}" in capsys.readouterr().out
    rows = read_metrics(world / "run")
    assert all(set(BOTH) <= set(row) for row in rows if "loss" in row)
    evals = [row for row in rows if "eval_loss" in row]
    if kind != "named":
        assert evals[0]["eval_token_kl"] == pytest.approx(0, abs=1e-6)
    assert evals[-1]["eval_token_kl"] > 5e-5
    expected = by_plain_transformers(world / "run", world / reference)
    for name, value in expected.items():
        assert evals[-1][f"eval_{name}"] == pytest.approx(value, rel=1e-4)


def test_asking_changes_nothing_else(world: Path) -> None:
    train(world)
    train(world, output_dir=str(world / "asked"), training__extra_metrics=BOTH)
    bare, asked = read_metrics(world / "run"), read_metrics(world / "asked")
    names = {*BOTH, *(f"eval_{name}" for name in BOTH)}
    assert [{k: v for k, v in row.items() if k not in names} for row in asked] == bare
    assert not any(names & set(row) for row in bare)
    files = [(world / run / "model.safetensors").read_bytes() for run in ("run", "asked")]
    assert files[0] == files[1]


def test_rows_that_are_not_logged_are_not_measured(world: Path) -> None:
    train(world, training__extra_metrics=BOTH, training__logging_steps=2, training__batch_size=5)
    rows = [row for row in read_metrics(world / "run") if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(set(BOTH) <= set(row) for row in rows)


def test_a_resumed_run_is_measured_against_its_start(world: Path) -> None:
    """Not against what it resumes from."""
    changes = {"training__extra_metrics": BOTH, "training__save_steps": 1, **FAST}
    train(world, training__save_total_limit=9, **changes)
    shutil.copytree(world / "run", world / "cut")
    for name in ("summary.json", "model.safetensors", "checkpoint-2"):
        path = world / "cut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(world, training__save_total_limit=9, output_dir=str(world / "cut"), **changes)
    assert read_metrics(world / "cut") == read_metrics(world / "run")


def test_a_run_may_be_resumed_with_others(world: Path) -> None:
    train(world, training__extra_metrics=BOTH)
    assert train(world)["num_steps"] == 2


def test_sft_measures_the_responses_it_learns(world: Path) -> None:
    chats = str(world / "chats.jsonl")
    more = {"training__extra_metrics": BOTH, "training__num_train_epochs": 2}
    given = recipe(world, data=chats, **more, **FAST)
    penchant.run("sft", None, given)
    first, *_, last = read_metrics(world / "run")
    assert first["entropy"] == pytest.approx(5.55, abs=0.01)  # a fresh model: ln 259 = 5.557
    assert first["token_kl"] == pytest.approx(0, abs=1e-6)
    assert last["token_kl"] > 1e-3


def test_where_the_reference_stays_plain_so_does_the_policy(world: Path) -> None:
    save_model(tiny_model("bloom"), tiny_tokenizer(), world / "bloom")
    named = {"reference": str(world / "bloom"), "output_dir": str(world / "alone")}
    assert train(world, **named)["engine"]["layout"] == "packed"
    summary = train(world, **(named | {"output_dir": str(world / "run")}),
                    training__extra_metrics="token_kl")  # fmt: skip
    assert summary["engine"]["layout"] == "plain"
    assert summary["engine"]["reason"].startswith("the token KL needs one layout, and one model")
    assert read_metrics(world / "run")[-1]["eval_token_kl"] > 0


def test_a_reference_that_predicts_other_tokens_is_refused(world: Path) -> None:
    save_model(tiny_model(vocab_size=300), tiny_tokenizer(), world / "wide")
    train(world, reference=str(world / "wide"), output_dir=str(world / "alone"))
    with pytest.raises(ModelError, match="the policy predicts 259 tokens and the reference 300"):
        train(world, reference=str(world / "wide"), training__extra_metrics="token_kl")
    assert not (world / "run").exists()


@pytest.fixture
def _objectives(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "objectives").mkdir()
    with dropped_in(tmp_path / "objectives"):
        yield


@pytest.mark.usefixtures("_objectives")
@pytest.mark.parametrize("name", ["entropic", "entropic-step"])
@pytest.mark.parametrize("changes", [{}, {"model__adapter": ADAPTER}, {"model": "lora"}])
def test_a_users_objective_trains_and_is_verified(
    world: Path, name: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A price on KL keeps the policy nearer; each of the two terms changes the run."""
    folders = {key: str(world / v) if key == "model" else v for key, v in changes.items()}
    fields: dict[str, dict[str, float]] = {
        "run": {},
        "free": {"kl_weight": 0.0},
        "bare": {"kl_weight": 0.0, "entropy_weight": 0.0},
    }
    for run, given in fields.items():
        objective = {"name": name, "beta": 0.3, "kl_weight": 20.0} | given
        more = {"output_dir": str(world / run), "training__num_train_epochs": 3}
        train(world, objective=objective, **more, **folders, **FAST)
    last = {run: read_metrics(world / run)[-1] for run in fields}
    assert 0 < last["run"]["eval_token_kl"] < 0.8 * last["free"]["eval_token_kl"]
    assert last["free"]["eval_entropy"] != pytest.approx(last["bare"]["eval_entropy"], abs=1e-6)
    penchant.run("verify", None, {"run": str(world / "run")})
    given = recipe(world, objective={"name": name, "beta": 0.3}, **folders) | {"row": 3}
    capsys.readouterr()
    explained = penchant.run("explain", None, {k: v for k, v in given.items() if "output" not in k})
    assert explained is not None


def test_on_the_command_line(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    keys = [f"{key}={value}" for key, value in recipe(world).items()]
    for given, names in (("entropy", {"entropy"}), ("[entropy, token_kl]", set(BOTH))):
        output = f"output_dir={world / given[:3]}"
        asked = ["train", *keys, f"training.extra_metrics={given}", output]
        result = CliRunner().invoke(cli.app, asked)
        assert result.exit_code == 0, result.output
        assert set(read_metrics(world / given[:3])[0]) & set(BOTH) == names
    result = CliRunner().invoke(cli.app, ["train", *keys, "training.extra_metrics=perplexity"])
    assert result.exit_code == 2
    assert "training.extra_metrics" in result.output and "perplexity" in result.output
    result = CliRunner().invoke(cli.app, ["train", "--help"])
    assert "training.extra_metrics" in result.output
