"""The reference of runs: computed once for all of them, and again whenever it is another one."""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from typer.testing import CliRunner

import penchant
from penchant import cli
from penchant.engine.reference_store import ReferenceStore
from penchant.errors import RecipeError
from penchant.train import reference
from tests.commands.world import one_bit, pair, read_metrics, recipe, write_rows, write_world
from tests.train import processes

ROWS = 24
EVAL_ROWS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("made"))


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed, with a cache of its own."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def settings(world: Path, run: str, **changes: Any) -> dict[str, Any]:
    given = {
        "data__eval": str(world / "eval.jsonl"),
        "output_dir": str(world / run),
        "training__max_steps": 1,
    }
    return recipe(world, **(given | changes))


def train(world: Path, run: str, **changes: Any) -> tuple[int, int]:
    """`penchant train`; rows of the reference that were computed, and that were there."""
    keys = [f"{key}={json.dumps(value)}" for key, value in settings(world, run, **changes).items()]
    done = CliRunner().invoke(cli.app, ["train", *keys], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    summary = json.loads((world / run / "summary.json").read_text())
    return summary["reference_rows_computed"], summary["reference_rows_reused"]


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Forward passes of decoder layers in the reference pass: one number per pass."""
    counts: list[int] = []
    filling = [False]
    real = ReferenceStore.fill

    def fill(*given: Any, **keywords: Any) -> None:
        counts.append(0)
        filling[0] = True
        real(*given, **keywords)
        filling[0] = False

    def count(module: torch.nn.Module, _: Any) -> None:
        if filling[0] and type(module).__name__ == "LlamaDecoderLayer":
            counts[-1] += 1

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceStore, "fill", fill)
        handle = register_module_forward_pre_hook(count)
        yield counts
        handle.remove()


def test_a_second_run_makes_no_reference_forward_pass(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another objective, learning rate, seed and batch size, another folder, and an adapter."""
    with counting(monkeypatch) as counts:
        assert train(world, "one") == (ROWS + EVAL_ROWS, 0)
        assert len(counts) == 2 and min(counts) > 0
        assert train(
            world,
            "two",
            objective={"name": "slic-dpo", "beta": 0.3, "delta": 2.0},
            training__learning_rate=2e-3,
            training__seed=7,
            training__batch_size=4,
            training__token_budget=300,
            training__lr_scheduler_type="linear",
        ) == (0, ROWS + EVAL_ROWS)
        adapter = {"r": 4, "alpha": 8, "dropout": 0.1}
        assert train(world, "three", model__adapter=adapter) == (0, ROWS + EVAL_ROWS)
        mmpo = {"name": "mmpo", "beta": 0.1, "bt_beta": 1.0}
        assert train(world, "four", objective=mmpo) == (0, ROWS + EVAL_ROWS)
        assert counts[2:] == [0] * 6
    for run in ("one", "two", "three", "four"):
        first = read_metrics(world / run)[0]
        assert first["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert read_metrics(world / "three")[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)


def one_row(world: Path) -> None:
    rows = [pair(n) for n in range(ROWS)]
    rows[3]["chosen"][0]["content"] += "!"
    write_rows(world / "pairs.jsonl", rows)


def reordered(world: Path) -> None:
    write_rows(world / "pairs.jsonl", [pair(n) for n in reversed(range(ROWS))])


NOTHING: Callable[[Path], None] = lambda world: None  # noqa: E731
CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, Any], int]] = {
    "a weight": (one_bit, {}, 30),
    "a token id": (one_row, {}, 1),
    "the order of rows": (reordered, {}, 0),
    "the template": (NOTHING, {"data__chat_template": "zephyr"}, 30),
    # What is left of the six held-out rows is left of training rows too.
    "truncation": (NOTHING, {"data__max_length": 24}, 24),
    "the dtype": (NOTHING, {"model__dtype": "bfloat16"}, 30),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_a_value_is_computed_again_and_nothing_else(world: Path, what: str) -> None:
    change, keys, computed = CHANGES[what]
    train(world, "before")
    change(world)
    assert train(world, "after", **keys) == (computed, 30 - computed)
    alone = dict(keys, output_dir=str(world / "alone"))
    os.environ["PENCHANT_CACHE"] = str(world / "nothing")  # the fixture puts it back
    assert train(world, "alone", **alone) == ((24, 6) if what == "truncation" else (30, 0))
    mixed, fresh = (read_metrics(world / run) for run in ("after", "alone"))
    for row, expected in zip(mixed, fresh, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_an_adapter_that_goes_on_is_its_own_reference(world: Path) -> None:
    """As it was loaded: not its base, and not another adapter of the same base."""
    adapter = {"r": 4, "alpha": 8, "dropout": 0.0}
    keys = {"model__adapter": adapter, "training__learning_rate": 1e-2}
    train(world, "base")
    assert train(world, "one", **keys) == (0, 30)
    assert train(world, "two", training__seed=1, **keys) == (0, 30)
    for start in ("one", "two"):
        run = {"model": str(world / start), "training__learning_rate": 1e-2}
        assert train(world, f"{start}-on", **run) == (30, 0)
        assert train(world, f"{start}-again", **run) == (0, 30)
        first = read_metrics(world / f"{start}-again")[0]
        assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_named_reference_is_found_by_its_own_weights(world: Path) -> None:
    train(world, "other", training__learning_rate=1e-2, training__max_steps=3)
    named = {"reference": str(world / "other")}
    assert train(world, "one", **named) == (30, 0)
    assert train(world, "two", **named, training__seed=3) == (0, 30)
    assert train(world, "started-there", model=str(world / "other")) == (0, 30)
    one, two = (read_metrics(world / run)[0] for run in ("one", "two"))
    assert one["eval_loss"] == pytest.approx(two["eval_loss"], abs=1e-6)
    assert abs(one["eval_loss"] - math.log(2)) > 1e-4


def test_a_named_reference_whose_rows_are_stored_is_not_even_loaded(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(world, "other", training__learning_rate=1e-2, training__max_steps=3)
    named = {"reference": str(world / "other")}
    train(world, "one", **named)
    loads: list[str] = []
    real = reference.named_reference

    def named_reference(source: Any, place: Any) -> Any:
        loads.append(source.path)
        return real(source, place)

    monkeypatch.setattr(reference, "named_reference", named_reference)
    assert train(world, "two", **named, training__seed=3) == (0, 30) and not loads
    assert read_metrics(world / "two")[0] == read_metrics(world / "one")[0]
    penchant.run("verify", None, {"run": str(world / "two")})
    # Rows, weights or numbers that are not the stored ones need the model.
    more = {"data__max_length": 24}
    assert train(world, "cut", **named, **more) == (24, 6) and len(loads) == 1
    half = {"path": str(world / "other"), "dtype": "bfloat16"}
    assert train(world, "half", reference=half) == (30, 0) and len(loads) == 2
    kl = {"training__extra_metrics": ["token_kl"]}
    assert train(world, "kl", **named, **kl) == (0, 30) and len(loads) == 3
    shutil.copytree(world / "other", world / "model", dirs_exist_ok=True)
    one_bit(world)
    changed = {"reference": str(world / "model"), "model": str(world / "other")}
    assert train(world, "changed", **changed) == (30, 0) and len(loads) == 4
    # Noted with other code, as after an edit of the library: the model is loaded, and found.
    for shortcut in (world / "cache" / "digests").glob("*.entry"):
        known = json.loads(shortcut.read_text())
        assert any(Path(file).name == "modeling_llama.py" for file in known["files"])
        shortcut.write_text(json.dumps(known | {"code": "another"}))
    assert train(world, "edited", **named) == (0, 30) and len(loads) == 5
    assert train(world, "noted", **named) == (0, 30) and len(loads) == 5


def test_a_note_does_not_outlive_the_code_that_it_was_made_by(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = world / "noted_code.py"
    code.write_text("import torch\n\n\nclass Own(torch.nn.Linear):\n    scale = 1\n")
    monkeypatch.syspath_prepend(world)
    (reference.folder() / "entry").mkdir(parents=True)
    shortcut = reference.digests_folder() / "files.entry"
    shortcut.parent.mkdir()
    for change in (lambda: code.write_text(code.read_text().replace("1", "2")), code.unlink):
        reference.note(shortcut, "entry", importlib.import_module("noted_code").Own(2, 2))
        assert reference.noted(shortcut) == "entry"
        reference.forget_gone()
        assert shortcut.is_file()
        change()
        assert reference.noted(shortcut) is None
        reference.forget_gone()
        assert not shortcut.exists()
    for damaged in ("entry", "[]", "{}", '{"entry": 1, "files": 2, "code": 3}'):
        shortcut.write_text(damaged)
        assert reference.noted(shortcut) is None


def start_slow(world: Path, run: str, **changes: Any) -> Any:
    """A run of many small micro-batches in a process of its own."""
    keys = {"training__token_budget": 60, "data__eval": str(world / "eval.jsonl")}
    keys |= {"output_dir": str(world / run), "training__max_steps": 1}
    return processes.start(world, **(keys | changes))


def stored_rows(world: Path) -> int:
    return sum(len(load_file(path)["keys"]) for path in shards(world))


def shards(world: Path) -> list[Path]:
    return sorted((world / "cache" / "reference").glob("*/*.safetensors"))


def test_a_run_that_is_killed_in_the_reference_pass_goes_on_where_it_was(world: Path) -> None:
    write_rows(world / "pairs.jsonl", [pair(n) for n in range(200, 1700)])
    process = start_slow(world, "killed")
    assert processes.wait_until(process, lambda: len(shards(world)) >= 3), process.communicate()
    process.kill()
    assert process.wait(processes.PATIENCE) == -signal.SIGKILL
    stored = stored_rows(world)
    assert 0 < stored < 1506
    code, _, err = processes.finish(start_slow(world, "killed"))
    assert code == 0, err
    summary = json.loads((world / "killed" / "summary.json").read_text())
    assert summary["reference_rows_reused"] == stored
    assert summary["reference_rows_computed"] == 1506 - stored
    assert stored_rows(world) == 1506 and not list((world / "cache").rglob("*.tmp"))
    assert train(world, "whole", training__token_budget=60) == (0, 1506)
    killed, whole = (read_metrics(world / run) for run in ("killed", "whole"))
    assert killed == whole
    penchant.run("verify", None, {"run": str(world / "killed")})


def test_two_runs_at_once_share_the_work(world: Path) -> None:
    write_rows(world / "pairs.jsonl", [pair(n) for n in range(200, 1000)])
    objectives = [{"name": "dpo", "beta": 0.1}, {"name": "slic-dpo", "beta": 0.1, "delta": 1.0}]
    runs = [start_slow(world, name["name"], objective=name) for name in objectives]
    for run in runs:
        code, _, err = processes.finish(run)
        assert code == 0, err
    summaries = [
        json.loads((world / name["name"] / "summary.json").read_text()) for name in objectives
    ]
    computed = [summary["reference_rows_computed"] for summary in summaries]
    reused = [summary["reference_rows_reused"] for summary in summaries]
    assert sum(computed) == 806 == stored_rows(world)
    assert [a + b for a, b in zip(computed, reused, strict=True)] == [806, 806]


def test_a_signal_in_the_reference_pass_loses_nothing(world: Path) -> None:
    write_rows(world / "pairs.jsonl", [pair(n) for n in range(200, 1700)])
    process = start_slow(world, "stopped")
    assert processes.wait_until(process, lambda: len(shards(world)) >= 2), process.communicate()
    process.send_signal(signal.SIGTERM)
    code, _, err = processes.finish(process)
    assert (code, err.splitlines()[-1]) == (
        143, "stopped before training; run the same command to go on",
    )  # fmt: skip
    stored = stored_rows(world)
    assert 0 < stored < 1506
    assert train(world, "next", training__token_budget=60) == (1506 - stored, stored)
    assert not [*(world / "cache").rglob("*.tmp"), *(world / "cache").rglob("*.claim")]


def test_a_resumed_run_has_the_reference_it_began_with(world: Path) -> None:
    keys = {"training__max_steps": 6, "training__save_steps": 2, "training__learning_rate": 1e-2}
    train(world, "whole", **keys)
    assert train(world, "cut", **keys) == (0, 30)
    for name in ("summary.json", "model.safetensors", "manifest.json"):
        (world / "cut" / name).unlink()
    shutil.rmtree(world / "cut" / "checkpoint-6")
    assert train(world, "cut", **keys) == (0, 30)
    assert read_metrics(world / "cut") == read_metrics(world / "whole")
    penchant.run("verify", None, {"run": str(world / "cut")})


def test_a_run_does_not_go_on_from_a_changed_start(world: Path) -> None:
    """Also where the file has the size and the time that it had."""
    keys = {"training__max_steps": 2, "training__save_steps": 1}
    train(world, "cut", **keys)
    (world / "cut" / "summary.json").unlink()
    path = world / "model" / "model.safetensors"
    before = path.stat()
    one_bit(world)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(RecipeError, match="starting model or reference of this run changed"):
        penchant.run("train", None, settings(world, "cut", **keys))


def test_a_damaged_shard_is_computed_again(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(world, "one")
    path = shards(world)[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    summary = penchant.run("train", None, settings(world, "two"))
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 1 and "its rows are computed again" in told[0]
    assert summary["reference_rows_computed"] + summary["reference_rows_reused"] == 30
    assert summary["reference_rows_computed"] in (6, 24)
    assert read_metrics(world / "one")[0] == pytest.approx(read_metrics(world / "two")[0])


def test_a_run_does_not_go_on_with_changed_code_or_other_weights(world: Path) -> None:
    """Of a checkpoint that brings its own code, or the weights in torch's own files."""
    brought = [world / "model" / name for name in ("modeling_own.py", "more.pt", "more.pth")]
    for path in brought:
        path.write_text("scale = 1\n")
    keys = {"training__max_steps": 2, "training__save_steps": 1}
    train(world, "cut", **keys)
    for path in brought:
        (world / "cut" / "summary.json").unlink(missing_ok=True)
        path.write_text("scale = 2\n")
        with pytest.raises(RecipeError, match="starting model or reference of this run changed"):
            penchant.run("train", None, settings(world, "cut", **keys))
        path.write_text("scale = 1\n")
    penchant.run("train", None, settings(world, "cut", **keys))


@pytest.mark.parametrize("how", ["a file is in the way", "no space is allowed"])
def test_without_a_place_on_disk_the_reference_is_kept_in_memory(
    world: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "a file is in the way":
        (world / "cache").mkdir()
        (world / "cache" / "reference").write_text("")
    else:
        monkeypatch.setenv("PENCHANT_REFERENCE_CACHE_SIZE", "0")
    for run in ("one", "two"):
        summary = penchant.run("train", None, settings(world, run))
        assert summary["reference_rows_computed"] == 30
        assert summary["eval"]["eval_loss"] < 1
    told = [line for line in capsys.readouterr().err.splitlines() if "kept in memory" in line]
    assert len(told) == (2 if how == "a file is in the way" else 0)
    assert not shards(world)


def test_a_size_that_is_none_is_an_error_before_anything_is_written(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENCHANT_REFERENCE_CACHE_SIZE", "plenty")
    with pytest.raises(RecipeError, match="PENCHANT_REFERENCE_CACHE_SIZE='plenty' is no size"):
        penchant.run("train", None, settings(world, "run"))
    assert not (world / "run").exists()


def bound_by_permissions() -> None:
    """Root may write everywhere; without this capability the mode of a file counts for it too."""
    if os.geteuid() == 0:
        drop, dac_override = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        assert ctypes.CDLL(None).prctl(drop, dac_override, 0, 0, 0) == 0


def test_a_cache_that_may_only_be_read_is_used(world: Path) -> None:
    """What is lacking is computed, and kept in memory."""
    train(world, "one")
    write_rows(world / "pairs.jsonl", [pair(n) for n in range(ROWS + 4)])
    places = [world / "cache", *(world / "cache").rglob("*")]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    keys = {"output_dir": str(world / "two"), "data__eval": str(world / "eval.jsonl")}
    code, _, err = processes.finish(processes.start(world, before=bound_by_permissions, **keys))
    for place in places:
        place.chmod(0o755 if place.is_dir() else 0o644)
    assert code == 0, err
    summary = json.loads((world / "two" / "summary.json").read_text())
    assert summary["reference_rows_computed"] == 4
    assert summary["reference_rows_reused"] == 30
    assert err.count("kept in memory, for this run only") == 1
