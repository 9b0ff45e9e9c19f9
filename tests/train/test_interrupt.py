"""SIGTERM and Ctrl-C at every phase: the run leaves in good order, and goes on to the same end."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.engine.reference_store import ReferenceStore
from penchant.errors import Stopped
from penchant.train import checkpoint, fit, manifest
from penchant.train.interrupt import Interrupt, watch
from penchant.train.step import Step
from tests.commands.world import recipe, same_bits, write_world
from tests.train import processes

HEARD = (signal.SIGTERM, signal.SIGINT)
STEPS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world and a run in it that nothing interrupts."""
    folder = write_world(tmp_path_factory.mktemp("made"))
    train(folder, folder / "run")
    return folder


def settings(world: Path, run: Path) -> dict[str, Any]:
    return {
        "data__eval": str(world / "eval.jsonl"),
        "output_dir": str(run),
        "training__num_train_epochs": 2,
        "training__eval_steps": 2,
        "training__save_steps": 3,
        "training__learning_rate": 1e-2,
    }


def train(world: Path, run: Path) -> dict[str, Any]:
    return penchant.run("train", None, recipe(world, **settings(world, run)))


def at_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *numbers: int
) -> None:
    """The process signals itself on the way into the n-th call of a function, which then runs."""
    real, calls = getattr(owner, name), 0

    def signalled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for number in numbers:
                signal.raise_signal(number)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalled)


@pytest.mark.parametrize("number", HEARD)
@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        (Step, "train", 1, 1),
        (Step, "train", 4, 4),  # an evaluation is due after it: left for later
        (Step, "train", 5, 5),  # nothing is due after it
        (Step, "train", 6, 6),  # the last one
        (Step, "evaluate", 2, 2),
        (checkpoint, "save_checkpoint", 1, 3),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_end(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    owner: Any,
    name: str,
    call: int,
    step: int,
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, call, number)
        with pytest.raises(Stopped) as caught:
            train(made, run)
    line = f"stopped at step {step} of {STEPS}; run the same command to go on"
    assert (str(caught.value), caught.value.exit_code) == (line, 128 + number)
    assert checkpoint.find_checkpoint(run, "auto") == run / f"checkpoint-{step}"
    assert manifest.find_fault(run / f"checkpoint-{step}") is None
    assert not list(run.glob(".*")) and not (run / "summary.json").exists()
    train(made, run)
    assert same_bits(run, made / "run")


@pytest.mark.parametrize(
    ("owner", "name", "message"),
    [
        (fit.load, "compute_dtype", "stopped before training; run the same command to go on"),
        (ReferenceStore, "fill", "stopped before training; run the same command to go on"),
        (Step, "evaluate", f"stopped at step 0 of {STEPS}; run the same command to go on"),
    ],
)
def test_before_the_first_update_there_is_nothing_to_save(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    message: str,
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, 1, signal.SIGTERM)
        with pytest.raises(Stopped, match=re.escape(message)):
            train(made, run)
    assert not checkpoint.checkpoints(run) and not list(run.glob(".*"))
    train(made, run)
    assert same_bits(run, made / "run")


def test_a_signal_while_the_end_is_written_lets_it_be_written(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(patch, fit, "_finish", 1, signal.SIGTERM)
        train(made, run)
    assert (run / "summary.json").exists() and same_bits(run, made / "run")


def test_evaluations_are_not_counted_twice_after_two_interruptions(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the evaluation of step 2, killed after it was made up for."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(patch, Step, "evaluate", 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            train(made, run)
    assert not checkpoint.read_progress(run / "checkpoint-2").settled
    with monkeypatch.context() as patch:
        at_call(patch, Step, "train", 1, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(made, run)
    assert '"eval_loss"' in (run / "metrics.jsonl").read_text().splitlines()[-1]
    train(made, run)
    assert same_bits(run, made / "run")


@pytest.mark.parametrize(
    ("owner", "name", "call", "left"),
    [(Step, "train", 5, ["checkpoint-3"]), (checkpoint.torch, "save", 2, [])],
)
def test_a_second_ctrl_c_ends_the_run_at_once(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    left: list[str],
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, call, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as caught:
            train(made, run)
    assert not isinstance(caught.value, Stopped)
    assert [path.name for path in checkpoint.checkpoints(run)] == left
    assert not list(run.glob(".*"))
    train(made, run)
    assert same_bits(run, made / "run")


def test_a_repeated_sigterm_is_the_same_request(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, Step, "train", 2, signal.SIGTERM, signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped at step 2 of 6"):
            train(made, tmp_path / "run")


def test_handlers_come_back(made: Path, tmp_path: Path) -> None:
    def own(number: int, frame: Any) -> None:
        raise AssertionError("not called here")

    before = {number: signal.signal(number, own) for number in HEARD}
    try:
        with pytest.raises(Stopped), watch():
            assert signal.getsignal(signal.SIGTERM) is not own
            signal.raise_signal(signal.SIGTERM)
        assert all(signal.getsignal(number) is own for number in HEARD)
        # What a process was started to ignore stays ignored.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with watch() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.received is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_a_run_works_and_listens_to_nothing(
    made: Path, tmp_path: Path
) -> None:
    run, failed = tmp_path / "run", []
    before = [signal.getsignal(number) for number in HEARD]
    seen: list[Any] = []

    def work() -> None:
        try:
            with watch():
                seen.extend(signal.getsignal(number) for number in HEARD)
            train(made, run)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and seen == before
    assert same_bits(run, made / "run")


def test_a_signal_waits_only_where_it_is_held() -> None:
    interrupt = Interrupt()
    with interrupt.held():
        interrupt.handle(signal.SIGTERM)
        with pytest.raises(Stopped), interrupt.at_once():
            raise AssertionError("entered although a signal had come")
        with pytest.raises(Stopped):
            interrupt.check()
    fresh = Interrupt()
    fresh.check()
    with fresh.held(), fresh.at_once(), pytest.raises(Stopped):
        fresh.handle(signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_on_the_command_line_it_is_one_line_and_an_exit_code(
    made: Path, tmp_path: Path, number: int, code: int
) -> None:
    run = tmp_path / "run"
    changes = settings(made, run) | {"training__num_train_epochs": 1000}
    process = processes.start(made, **changes)
    assert processes.wait_until(process, lambda: processes.num_rows(run) > 20)
    os.kill(process.pid, number)
    found, _, err = processes.finish(process)
    assert found == code, err
    line = re.fullmatch(
        r"stopped at step (\d+) of 3000; run the same command to go on", err.splitlines()[-1]
    )
    assert line is not None and "Traceback" not in err
    assert manifest.find_fault(run / f"checkpoint-{line[1]}") is None
    assert checkpoint.find_checkpoint(run, "auto") == run / f"checkpoint-{line[1]}"
