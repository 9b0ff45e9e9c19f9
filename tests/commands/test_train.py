"""`penchant train` and `sft` whole: the run folder, the metrics, resuming, adapters, references."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import penchant
from penchant.errors import ModelError, NonFiniteLossError, RecipeError
from tests.commands.world import linked, read_metrics, recipe, write_rows, write_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("made"))


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return linked(made, tmp_path)


def train(world: Path, **changes: Any) -> dict[str, Any]:
    return penchant.run("train", None, recipe(world, **changes))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def test_a_run_leaves_what_it_promises(world: Path) -> None:
    summary = train(world, data__eval=str(world / "eval.jsonl"))
    run = world / "run"
    for name in ("recipe.yaml", "environment.json", "data_report.json", "README.md"):
        assert (run / name).stat().st_size > 0
    assert json.loads((run / "summary.json").read_text()) == summary
    assert (summary["num_steps"], summary["rows_used"], summary["rows_set_aside"]) == (3, 24, 0)
    rows = summary["reference_rows_computed"] + summary["reference_rows_reused"]
    assert rows == 24 + 6  # another test's run may have stored some of them
    assert json.loads((run / "data_report.json").read_text())["eval"]["rows_used"] == 6
    AutoModelForCausalLM.from_pretrained(run)
    assert AutoTokenizer.from_pretrained(run).chat_template
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]


def test_metrics_have_a_row_per_update_and_per_evaluation(world: Path) -> None:
    train(world, data__eval=str(world / "eval.jsonl"), training__num_train_epochs=2)
    rows = read_metrics(world / "run")
    evals = [row for row in rows if "eval_loss" in row]
    updates = [row for row in rows if "loss" in row]
    assert [row["step"] for row in evals] == [0, 3, 6]
    assert [row["step"] for row in updates] == [1, 2, 3, 4, 5, 6]
    assert updates[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert evals[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert evals[0]["eval_rewards/accuracies"] == 0.0  # a tie counts nothing
    names = {"step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens"}
    names |= {f"logps/{side}" for side in ("chosen", "rejected")}
    names |= {f"rewards/{what}" for what in ("chosen", "rejected", "accuracies", "margins")}
    names |= {
        f"{what}/{side}" for what in ("lengths", "logratios") for side in ("chosen", "rejected")
    }
    names |= {"rewards/length_correlation"}
    assert all(set(row) == names for row in updates)
    assert updates[-1]["epoch"] == 2.0
    assert evals[-1]["eval_loss"] < evals[0]["eval_loss"]
    assert updates[-1]["num_tokens"] == 2 * updates[2]["num_tokens"]


def test_an_interrupted_run_ends_in_the_same_model(world: Path) -> None:
    changes: dict[str, Any] = {
        "model__adapter": {"r": 4, "alpha": 8, "dropout": 0.2},
        "training__num_train_epochs": 2,
        "training__save_steps": 2,
        "training__save_total_limit": 9,
    }
    train(world, **changes)
    whole = world / "run"
    torch.manual_seed(123)
    cut = world / "cut"
    shutil.copytree(whole, cut)
    for name in ("summary.json", "adapter_model.safetensors", "README.md"):
        (cut / name).unlink()
    for step in (4, 6):
        shutil.rmtree(cut / f"checkpoint-{step}")
    penchant.run("train", None, recipe(world, **changes) | {"output_dir": str(cut)})
    assert read_metrics(cut) == read_metrics(whole)
    one = load_file(whole / "adapter_model.safetensors")
    two = load_file(cut / "adapter_model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_run_is_not_run_again(world: Path) -> None:
    first = train(world)
    before = {path: path.stat().st_mtime_ns for path in (world / "run").rglob("*")}
    assert train(world) == first
    assert before == {path: path.stat().st_mtime_ns for path in (world / "run").rglob("*")}


def test_another_recipe_in_the_same_folder_is_refused(world: Path) -> None:
    train(world)
    with pytest.raises(RecipeError, match=r"another recipe.*objective.beta"):
        train(world, objective={"name": "dpo", "beta": 0.3})
    with pytest.raises(RecipeError, match="resume=never"):
        train(world, training__resume="never")
    (world / "full").mkdir()
    (world / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(RecipeError, match="not empty"):
        train(world, output_dir=str(world / "full"))


def test_a_run_does_not_go_on_with_other_data_or_another_start(world: Path) -> None:
    train(world, training__save_steps=1)
    run = world / "run"
    (run / "summary.json").unlink()
    rows = (world / "pairs.jsonl").read_text()
    (world / "pairs.jsonl").unlink()
    (world / "pairs.jsonl").write_text(rows.replace("red", "rad"))
    with pytest.raises(RecipeError, match="the data of this run changed"):
        train(world, training__save_steps=1)
    (world / "pairs.jsonl").write_text(rows)
    shutil.copytree(world / "model", world / "copy")
    (world / "model").unlink()
    shutil.move(world / "copy", world / "model")
    with (world / "model" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(RecipeError, match="starting model or reference"):
        train(world, training__save_steps=1)


def test_micro_batches_do_not_change_the_run(world: Path) -> None:
    train(world)
    train(world, training__token_budget=40, output_dir=str(world / "small"))
    one, two = weights_of(world / "run"), weights_of(world / "small")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_order(world: Path) -> None:
    train(world)
    train(world, output_dir=str(world / "same"))
    train(world, output_dir=str(world / "other"), training__seed=7)
    losses = [
        [row["loss"] for row in read_metrics(world / name)] for name in ("run", "same", "other")
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_fresh_adapter_measures_against_the_bare_model(world: Path) -> None:
    summary = train(world, model__adapter={"r": 4, "alpha": 8})
    assert summary["adapter"]
    assert (world / "run" / "adapter_model.safetensors").exists()
    assert not (world / "run" / "model.safetensors").exists()
    assert read_metrics(world / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_continued_adapter_measures_against_itself_as_loaded(world: Path) -> None:
    adapter = {"r": 4, "alpha": 8, "dropout": 0}
    train(world, model__adapter=adapter, training__learning_rate=0.05)
    train(world, model=str(world / "run"), output_dir=str(world / "second"))
    rows = read_metrics(world / "second")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    one = load_file(world / "run" / "adapter_model.safetensors")
    two = load_file(world / "second" / "adapter_model.safetensors")
    assert any(not torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(RecipeError, match=r"leave model\.adapter out"):
        train(
            world,
            model=str(world / "run"),
            model__adapter={"r": 2},
            output_dir=str(world / "third"),
        )


def test_a_named_reference_is_the_one_measured_against(world: Path) -> None:
    train(world, training__learning_rate=0.02)
    train(world, reference=str(world / "run"), output_dir=str(world / "second"))
    first = read_metrics(world / "second")[0]
    assert abs(first["loss"] - math.log(2)) > 1e-3
    assert first["rewards/margins"] < 0


def test_a_reference_of_other_tokens_is_refused(world: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    tokenizer.add_tokens(["<more>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(world / "grown")
    tokenizer.save_pretrained(world / "grown")
    with pytest.raises(ModelError, match="another tokenizer"):
        train(world, reference=str(world / "grown"))


def test_a_run_of_warm_up_alone_says_so(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(world, training__max_steps=1)
    assert "all 1 updates are warm-up" in capsys.readouterr().out


def test_bfloat16_keeps_float32_masters(world: Path) -> None:
    train(world, model__dtype="bfloat16", data__eval=str(world / "eval.jsonl"))
    rows = read_metrics(world / "run")
    assert rows[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-2)
    master = weights_of(world / "run" / "checkpoint-3")
    final = weights_of(world / "run")
    assert {value.dtype for value in master.values()} == {torch.float32}
    assert {value.dtype for value in final.values()} == {torch.bfloat16}
    # Updates of this size vanish in bfloat16; the masters must have taken them in.
    start = load_file(world / "model" / "model.safetensors")
    assert any(not torch.equal(start[name], master[name]) for name in start)


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop", "adafactor"])
def test_the_optimizer_that_is_named_runs(world: Path, optimizer: str) -> None:
    train(world, training__optimizer=optimizer)
    state = torch.load(world / "run" / "checkpoint-3" / "optimizer.pt", weights_only=True)
    keys = set(next(iter(state["state"].values())))
    expected = {
        "adamw": {"step", "exp_avg", "exp_avg_sq"},
        "rmsprop": {"step", "square_avg"},
        "adafactor": {"step", "row_var", "col_var"},
    }
    assert keys == expected[optimizer]


def test_the_best_checkpoint_is_kept_and_ends_the_run(world: Path) -> None:
    rows = [json.loads(line) for line in (world / "eval.jsonl").read_text().splitlines()]
    # The opposite of what is trained: it gets worse, so that the best is not the last.
    flipped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    write_rows(world / "flipped.jsonl", flipped)
    summary = train(
        world,
        data__eval=str(world / "flipped.jsonl"),
        training__keep_best=True,
        training__eval_steps=1,
        training__save_total_limit=1,
        training__learning_rate=1e-3,
        training__num_train_epochs=3,
    )
    evals = [row for row in read_metrics(world / "run") if "eval_loss" in row and row["step"]]
    best = min(evals, key=lambda row: row["eval_loss"])["step"]
    assert summary["best_step"] == best < 9
    kept = weights_of(world / "run" / f"checkpoint-{best}")
    final = weights_of(world / "run")
    assert all(torch.equal(kept[name], final[name]) for name in kept)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_rows(world: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = float("nan")
    broken = world / "broken"
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(world / "model").save_pretrained(broken)
    with pytest.raises(NonFiniteLossError, match=r"step 1 is not finite; rows: pairs:\d+"):
        train(world, model=str(broken))
    assert not (world / "run" / "summary.json").exists()


def test_a_dry_run_writes_nothing_and_counts_right(world: Path) -> None:
    before = sorted(path.name for path in world.iterdir())
    plan = penchant.run("train", None, recipe(world), dry_run=True)
    assert sorted(path.name for path in world.iterdir()) == before
    summary = train(world)
    for key in ("num_steps", "num_tokens", "rows_used", "rows_set_aside"):
        assert plan[key] == summary[key], key
    assert plan["estimated_seconds"] > 0 and plan["estimated_peak_bytes"] > 0


def test_max_steps_goes_beyond_an_epoch_and_stops_within_one(world: Path) -> None:
    assert train(world, training__max_steps=2)["num_steps"] == 2
    assert train(world, training__max_steps=7, output_dir=str(world / "b"))["num_steps"] == 7
    half = train(world, training__num_train_epochs=0.5, output_dir=str(world / "c"))
    assert half["num_steps"] == 2


def test_gradient_checkpointing_changes_nothing(world: Path) -> None:
    train(world)
    train(world, model__gradient_checkpointing=True, output_dir=str(world / "b"))
    one, two = weights_of(world / "run"), weights_of(world / "b")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_trackers_get_the_rows(world: Path) -> None:
    pytest.importorskip("tensorboard")
    train(world, training__report_to="tensorboard")
    assert list((world / "run").rglob("events.out.tfevents.*"))


def test_sft_learns_and_its_loss_is_the_token_mean(world: Path) -> None:
    changes = {"data": str(world / "chats.jsonl"), "training__num_train_epochs": 8}
    overrides = recipe(world, **changes) | {"training.learning_rate": 5e-3}
    penchant.run("sft", None, overrides)
    rows = read_metrics(world / "run")
    assert rows[0]["loss"] == pytest.approx(math.log(259), rel=0.1)  # a random model
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert "rewards/margins" not in rows[0]


def test_a_column_that_is_not_read_is_named(world: Path) -> None:
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    write_rows(world / "wide.jsonl", [{**row, "judge": "me"} for row in rows])
    for name in ("first", "cached"):
        train(world, data=str(world / "wide.jsonl"), output_dir=str(world / name))
        report = json.loads((world / name / "data_report.json").read_text())
        assert report["sources"]["wide"]["columns_not_read"] == ["judge"]
        assert "wide: columns not read: judge" in report["notes"]
    train(world)
    report = json.loads((world / "run" / "data_report.json").read_text())
    assert report["sources"]["pairs"]["columns_not_read"] == []


def test_sft_on_pairs_learns_from_the_chosen(world: Path) -> None:
    penchant.run("sft", None, recipe(world))
    penchant.run(
        "sft", None, recipe(world, data=str(world / "chats.jsonl"), output_dir=str(world / "b"))
    )
    assert read_metrics(world / "run") == read_metrics(world / "b")


def test_rows_set_aside_are_counted_by_reason(world: Path) -> None:
    good = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    same = {**good[0], "rejected": good[0]["chosen"]}
    write_rows(world / "mixed.jsonl", [*good, same, {"prompt": "x", "chosen": "y"}])
    with (world / "mixed.jsonl").open("a") as file:
        file.write("{broken\n")
    summary = train(world, data=str(world / "mixed.jsonl"))
    assert summary["rows_in"] == 27 and summary["rows_used"] == 24
    report = json.loads((world / "run" / "data_report.json").read_text())
    assert sum(report["set_aside"].values()) == 3 and len(report["set_aside"]) == 3
