"""Checkpoints under test: damage of every kind, limits, a full disk, rows of metrics."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import penchant
from penchant.errors import MissingFileError, RecipeError, SaveError
from penchant.train import checkpoint, manifest
from penchant.train.metrics import MetricsFile
from tests.commands.world import (
    linked,
    read_metrics,
    recipe,
    same_bits,
    write_rows,
    write_world,
)
from tests.train import processes

STEPS = 6
PAGE = 4096


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world and a whole run of six steps in it, with a checkpoint of each."""
    folder = write_world(tmp_path_factory.mktemp("made"))
    train(folder)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return linked(made, tmp_path, without=["run"])


def train(world: Path, **changes: Any) -> dict[str, Any]:
    every = {
        "training__num_train_epochs": 2,
        "training__save_steps": 1,
        "training__save_total_limit": None,
        "training__learning_rate": 1e-2,
    }
    return penchant.run("train", None, recipe(world, **(every | changes)))


def cut_run(made: Path, folder: Path, steps: int) -> Path:
    """The run as a kill after so many steps leaves it, with rows and a line that came later."""
    run = folder / "run"
    shutil.copytree(made / "run", run)
    for name in ("summary.json", "model.safetensors", "README.md"):
        (run / name).unlink()
    for step in range(steps + 1, STEPS + 1):
        shutil.rmtree(run / f"checkpoint-{step}")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    return run


def test_a_checkpoint_lists_all_its_files(made: Path) -> None:
    folder = made / "run" / "checkpoint-3"
    files = {path.name for path in folder.iterdir()} - {manifest.MANIFEST}
    assert set(manifest.read(folder)) == files
    expected = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert expected | {"model.safetensors", "config.json", "tokenizer.json"} <= files
    assert manifest.find_fault(folder) is None
    assert manifest.find_fault(made / "run") is None  # the final model has one, too


def truncate(folder: Path) -> None:
    os.truncate(folder / "optimizer.pt", 1000)


def flip(folder: Path, name: str = "model.safetensors") -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / manifest.MANIFEST, 100)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"optimizer\.pt has 1000 bytes, not \d+"),
    "one bit flipped": (flip, r"model\.safetensors has changed"),
    "bit of a small file": (lambda f: flip(f, "trainer_state.json"), r"trainer_state.*changed"),
    "file missing": (lambda f: (f / "rng_state.pth").unlink(), r"rng_state\.pth is missing"),
    "no manifest": (lambda f: (f / manifest.MANIFEST).unlink(), r"no manifest\.json"),
    "half a manifest": (cut_manifest, r"manifest\.json cannot be read"),
    "manifest of another kind": (
        lambda f: (f / manifest.MANIFEST).write_text('{"files": [1]}'),
        r"manifest\.json cannot be read",
    ),
    "emptied": (lambda f: [p.unlink() for p in f.iterdir()] and None, r"no manifest\.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    made: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cut_run(made, tmp_path, 4)
    do, message = DAMAGES[damage]
    do(run / "checkpoint-4")
    assert checkpoint.find_checkpoint(run, "auto") == run / "checkpoint-3"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert "skipped checkpoint-4" in lines[0] and "checkpoint-4.damaged" in lines[0]
    # Put aside, it counts for nothing any more.
    assert [p.name for p in checkpoint.checkpoints(run)][-1] == "checkpoint-3"
    assert checkpoint.find_checkpoint(run, "auto") == run / "checkpoint-3"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damaged", [(6,), (6, 5, 4), ()])
def test_a_run_goes_on_to_the_same_end_whatever_is_damaged(
    made: Path, tmp_path: Path, damaged: tuple[int, ...]
) -> None:
    run = cut_run(made, tmp_path, STEPS)
    for step in damaged:
        flip(run / f"checkpoint-{step}")
    train(made, output_dir=str(run))
    assert same_bits(run, made / "run")
    assert not list(run.glob(".*"))


def test_with_nothing_whole_the_run_starts_over_and_says_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cut_run(made, tmp_path, 2)
    truncate(run / "checkpoint-1")
    truncate(run / "checkpoint-2")
    train(made, output_dir=str(run))
    assert "holds no whole checkpoint: starting over" in capsys.readouterr().out
    assert same_bits(run, made / "run")


def test_a_named_checkpoint_that_is_damaged_is_an_error(made: Path, tmp_path: Path) -> None:
    run = cut_run(made, tmp_path, 4)
    truncate(run / "checkpoint-4")
    with pytest.raises(RecipeError, match=r"checkpoint-4' is damaged \(optimizer\.pt has 1000"):
        checkpoint.find_checkpoint(run, str(run / "checkpoint-4"))
    assert (run / "checkpoint-4").exists()  # an error changes nothing
    with pytest.raises(MissingFileError, match=r"is not a checkpoint; allowed: auto"):
        checkpoint.find_checkpoint(run, str(run / "checkpoint-9"))


def test_a_named_older_checkpoint_puts_the_newer_ones_aside(made: Path, tmp_path: Path) -> None:
    run = cut_run(made, tmp_path, 4)
    train(made, output_dir=str(run), training__resume=str(run / "checkpoint-2"))
    assert same_bits(run, made / "run")
    aside = sorted(path.name for path in run.glob("*.superseded"))
    assert aside == ["checkpoint-3.superseded", "checkpoint-4.superseded"]


def test_leftovers_of_a_killed_save_are_cleared(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cut_run(made, tmp_path, 3)
    shutil.copytree(run / "checkpoint-3", run / ".checkpoint-4.tmp")
    (run / ".checkpoint-4.tmp" / manifest.MANIFEST).unlink()
    # Killed between the two renames that replace a checkpoint: the old one gets its name back.
    os.rename(run / "checkpoint-3", run / ".checkpoint-3.old")
    shutil.copytree(run / "checkpoint-2", run / ".checkpoint-2.old")
    assert checkpoint.find_checkpoint(run, "auto") == run / "checkpoint-3"
    assert not list(run.glob(".*"))
    out = capsys.readouterr().out
    assert "removed .checkpoint-4.tmp" in out and "removed .checkpoint-2.old" in out


def test_a_first_kill_leaves_a_folder_that_can_be_used(world: Path) -> None:
    (world / "run").mkdir()
    (world / "run" / ".recipe.yaml.tmp").write_text("model: ")
    assert train(world, training__max_steps=1)["num_steps"] == 1


def test_a_kill_between_the_last_checkpoint_and_the_summary_only_finishes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cut_run(made, tmp_path, STEPS)
    (run / ".model.tmp").mkdir()
    (run / ".model.tmp" / "model.safetensors").write_bytes(b"half")
    before = (run / f"checkpoint-{STEPS}" / "model.safetensors").stat().st_mtime_ns
    summary = train(made, output_dir=str(run))
    assert f"resumed from checkpoint-6 at step {STEPS} of {STEPS}" in capsys.readouterr().out
    assert summary["num_steps"] == STEPS and not list(run.glob(".*"))
    assert same_bits(run, made / "run")
    assert (run / f"checkpoint-{STEPS}" / "model.safetensors").stat().st_mtime_ns == before


def test_after_a_resume_the_reference_is_that_of_the_starting_weights(
    made: Path, tmp_path: Path
) -> None:
    run = cut_run(made, tmp_path, 3)
    train(made, output_dir=str(run))
    losses = [[row["loss"] for row in read_metrics(path)] for path in (run, made / "run")]
    assert losses[0][3] == losses[1][3]
    # Against the resumed policy itself it would be log 2 again.
    assert abs(losses[0][3] - math.log(2)) > 0.05


def test_the_newest_checkpoints_stay_and_the_best_one(world: Path) -> None:
    rows = [json.loads(line) for line in (world / "eval.jsonl").read_text().splitlines()]
    flipped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    write_rows(world / "flipped.jsonl", flipped)
    changes = {
        "data__eval": str(world / "flipped.jsonl"),
        "training__keep_best": True,
        "training__eval_steps": 1,
        "training__save_total_limit": 2,
    }
    summary = train(world, **changes)
    best = summary["best_step"]
    assert best < STEPS - 2  # it gets worse, so the limit alone would have taken the best
    run = world / "run"
    kept = [path.name for path in checkpoint.checkpoints(run)]
    assert kept == [f"checkpoint-{best}", "checkpoint-5", "checkpoint-6"]
    assert all(manifest.find_fault(run / name) is None for name in kept)
    final = (run / "model.safetensors").read_bytes()
    # Without its best checkpoint a run cannot end as it should: it goes back before it.
    shutil.rmtree(run / f"checkpoint-{best}")
    (run / "summary.json").unlink()
    assert train(world, **changes)["best_step"] == best
    assert (run / "model.safetensors").read_bytes() == final


def test_the_old_checkpoint_stays_until_the_new_one_is_whole(made: Path, tmp_path: Path) -> None:
    run = cut_run(made, tmp_path, 1)
    stays = run / "checkpoint-1"

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        assert manifest.find_fault(stays) is None
        raise OSError(28, "No space left on device")

    for step in (1, 2):  # a new checkpoint, and one that replaces another
        with pytest.raises(SaveError, match=rf"checkpoint-{step} could not be written.*no space"):
            checkpoint.save_checkpoint(
                run, checkpoint.Progress(step), save_weights=fail, optimizer=None, scheduler=None
            )
        assert manifest.find_fault(stays) is None and not list(run.glob(".*"))


def test_an_error_that_is_no_failed_write_keeps_its_kind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise TypeError("a mistake of ours")

    with pytest.raises(TypeError, match="a mistake of ours"):
        checkpoint.save_checkpoint(
            tmp_path, checkpoint.Progress(1), save_weights=fail, optimizer=None, scheduler=None
        )
    assert not list(tmp_path.iterdir())


def test_rows_after_the_checkpoint_and_half_rows_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "eval_loss": 1}, {"step": 1, "loss": 1}, {"step": 2, "loss": 1}]
    rows += [{"step": 2, "eval_loss": 1}, {"step": 3, "loss": 1}]
    whole = [json.dumps(row) + "\n" for row in rows]
    path.write_bytes("".join(whole).encode() + b'{"step": 4, "l\xff')
    MetricsFile(path, resume_after=3)
    assert path.read_text() == "".join(whole)
    MetricsFile(path, resume_after=2)
    assert path.read_text() == "".join(whole[:4])
    MetricsFile(path, resume_after=2, settled=False)  # the evaluation after step 2 comes again
    assert path.read_text() == "".join(whole[:3])
    MetricsFile(path).write({"step": 1, "loss": math.nan})
    assert path.read_text() == '{"step": 1, "loss": null}\n'


def space_of(paths: Iterator[Path]) -> int:
    """Bytes that files take on a disk of whole pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in paths if path.is_file())


def test_a_disk_that_fills_in_a_save_leaves_the_last_checkpoint(
    made: Path, world: Path, small_disk: Callable[[int], Path]
) -> None:
    one = space_of((made / "run" / "checkpoint-3").iterdir())
    run = small_disk(int(3.5 * one)) / "run"
    with pytest.raises(SaveError) as caught:
        train(world, output_dir=str(run))
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 1
    assert "no space left on the disk" in message and str(run) in message
    assert "run the same command to go on" in message
    kept = checkpoint.checkpoints(run)
    assert [p.name for p in kept] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert all(manifest.find_fault(path) is None for path in kept)
    assert not list(run.glob(".*"))
    small_disk(20 * one)
    train(world, output_dir=str(run))
    assert same_bits(run, made / "run")


def test_a_disk_that_fills_at_the_end_leaves_the_last_checkpoint(
    made: Path, world: Path, small_disk: Callable[[int], Path]
) -> None:
    every = (made / "run" / "checkpoint-6").iterdir()
    known = ("recipe.yaml", "data_report.json", "environment.json", "metrics.jsonl")
    about = space_of(made / "run" / name for name in known)
    room = space_of(every) + about + 10 * PAGE  # folders, and rows that are written twice
    run = small_disk(room) / "run"
    changes = {"output_dir": str(run), "training__save_steps": 100, "training__max_steps": 6}
    with pytest.raises(SaveError, match=r"model could not be written.*no space left"):
        train(world, **changes)
    assert manifest.find_fault(run / "checkpoint-6") is None
    assert not (run / "summary.json").exists() and not (run / "model.safetensors").exists()
    assert not list(run.glob(".*"))
    small_disk(4 * room)
    train(world, **changes)
    assert load_file(run / "model.safetensors").keys()
    assert same_bits(run, made / "run")


def test_a_disk_that_fills_while_logging_ends_the_run_with_one_line(
    world: Path, small_disk: Callable[[int], Path]
) -> None:
    run = small_disk(16 * PAGE) / "run"
    changes = {"output_dir": str(run), "training__max_steps": 500, "training__save_steps": 1000}
    with pytest.raises(SaveError, match=r"metrics\.jsonl could not be written.*no space left"):
        train(world, **changes)


def test_on_the_command_line_a_failed_write_is_one_line_and_exit_code_1(world: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = processes.start(world, before=limit, training__save_steps=1)
    code, _, err = processes.finish(process)
    assert code == 1, err
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "checkpoint-1 could not be written to" in errors[0], err
    assert "Traceback" not in err
    assert not list((world / "run").glob("*checkpoint*"))
