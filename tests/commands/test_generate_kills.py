"""A kill, a signal, a full disk: nothing finished is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penchant.errors import SaveError
from penchant.generate.journal import folder_of
from tests.commands.generate_world import (
    borrowed,
    ended,
    generate,
    journal_size,
    rows_of,
    start,
    together,
    wait_for,
)
from tests.commands.world import write_rows, write_world

LONG = {"n": 3, "max_tokens": 30, "token_budget": 400}
"""Small batches: several hundred steps, so that a kill falls into the middle of something."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = write_world(tmp_path_factory.mktemp("made"))
    write_rows(
        world / "prompts.jsonl", [{"prompt": f"{n}: say {'x' * (n % 7)}"} for n in range(24)]
    )
    generate(world, output=str(world / "whole.jsonl"), **LONG)
    return world


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return borrowed(made, tmp_path)


def finish(world: Path) -> None:
    """Runs to the end and compares with what nothing befell."""
    generate(world, **LONG)
    assert (world / "out.jsonl").read_bytes() == (world / "whole.jsonl").read_bytes()
    summaries = [json.loads((world / f"{n}.summary.json").read_text()) for n in ("out", "whole")]
    assert summaries[0] == summaries[1]
    assert not folder_of(world / "out.jsonl").exists()


def kill_again_and_again(world: Path, num_kills: int, size: int = 1) -> int:
    """Kills at random moments; how many of them came before the work was done."""
    rng = random.Random(5)
    whole = (world / "whole.jsonl").stat().st_size
    output = world / "out.jsonl"
    kills = 0
    for place in range(num_kills):
        process = start(lambda: generate(world, **LONG))
        goal = whole * (place + rng.random()) / (num_kills + 1)
        if wait_for(lambda g=goal: journal_size(output) >= g or output.exists(), process):
            time.sleep(rng.uniform(0, 0.01))
            before = journal_size(output)
            os.kill(process.pid, signal.SIGKILL)
            kills += ended(process) == -signal.SIGKILL
            assert output.exists() or journal_size(output) >= before
    return kills


def test_kills_at_random_moments_change_nothing(world: Path) -> None:
    assert kill_again_and_again(world, 4) >= 3
    finish(world)


@pytest.mark.slow
def test_many_kills_change_nothing(world: Path) -> None:
    assert kill_again_and_again(world, 40) >= 20
    finish(world)


def test_one_of_two_is_killed_and_one_goes_on_alone(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def dies(rank: int) -> None:
        if os.environ["RANK"] == str(rank):

            def at_random() -> None:
                while journal_size(world / "out.jsonl") < 2000:
                    time.sleep(0.002)
                os.kill(os.getpid(), signal.SIGKILL)

            import threading

            threading.Thread(target=at_random, daemon=True).start()
        generate(world, **LONG)

    codes = together(lambda: dies(1), 2)
    assert codes[1] == -signal.SIGKILL and codes[0] == 1
    assert "error: another process of this run ended" in capfd.readouterr().out
    assert journal_size(world / "out.jsonl") > 0 and not (world / "out.jsonl").exists()
    finish(world)


def test_three_processes_finish_what_one_began(world: Path) -> None:
    process = start(lambda: generate(world, **LONG))
    assert wait_for(lambda: journal_size(world / "out.jsonl") > 1000, process)
    process.kill()
    ended(process)
    assert together(lambda: generate(world, **LONG), 3) == [0, 0, 0]
    assert (world / "out.jsonl").read_bytes() == (world / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_one_line(
    world: Path, number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    process = start(lambda: generate(world, **LONG))
    assert wait_for(lambda: journal_size(world / "out.jsonl") > 1000, process)
    os.kill(process.pid, number)
    assert ended(process) == code
    said = capfd.readouterr().out
    assert "prompts are answered; run the same command to go on" in said
    finish(world)


@pytest.mark.parametrize("pages", [3, 8])
def test_a_full_disk_is_one_line_and_the_work_goes_on_when_there_is_room(
    world: Path, small_disk: Callable[[int], Path], pages: int
) -> None:
    """With 3 pages the journal fills it, with 8 the output beside the journal does."""
    page = 4096
    output = small_disk(pages * page) / "out.jsonl"
    with pytest.raises(SaveError, match="no space left") as caught:
        generate(world, output=str(output), **LONG)
    assert "\n" not in str(caught.value) and "run the same command" in str(caught.value)
    assert not output.exists() and caught.value.exit_code == 1
    kept = journal_size(output)
    assert kept > 0
    small_disk(400 * page)
    found = generate(world, output=str(output), **LONG)
    assert output.read_bytes() == (world / "whole.jsonl").read_bytes()
    assert found["new_tokens"] < found["completion_tokens"]


def test_a_limit_on_files_is_one_line_too(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        generate(world, **LONG)

    assert ended(start(limited)) == 1
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "out.jsonl could not be written" in said[0]
    finish(world)


def test_a_second_command_does_not_disturb_the_first(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = start(lambda: generate(world, **LONG))
    assert wait_for(lambda: journal_size(world / "out.jsonl") > 500, first)
    assert ended(start(lambda: generate(world, **LONG))) == 2
    assert "another command is writing" in capfd.readouterr().out
    assert ended(first) == 0
    assert len(rows_of(world / "out.jsonl")) == 24
    finish(world)
