"""`penchant generate` against a server that fails: every prompt answered once, the key nowhere."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from penchant.errors import EndpointError
from tests.commands.generate_world import (
    ended,
    generate,
    journal_size,
    rows_of,
    start,
    together,
    wait_for,
)
from tests.commands.world import write_rows
from tests.generate.faulty_server import FAULTS, FaultyServer, serving

KEY = "sk-very-secret-0815"
NUM = 40


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_rows(tmp_path / "texts.jsonl", [{"prompt": f"text {n}", "k": n} for n in range(NUM)])
    turns = [[{"role": "user", "content": f"chat {n}"}] for n in range(NUM)]
    write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": turn, "k": n} for n, turn in enumerate(turns)]
    )
    return tmp_path


def served(world: Path, server: FaultyServer, **changes: Any) -> dict[str, Any]:
    """The command against a server, patient and quick."""
    given: dict[str, Any] = {
        "model": "some/model",
        "device": None,
        "backend": "openai",
        "endpoint__base_url": server.base_url,
        "endpoint__backoff": 0.002,
        "endpoint__max_retries": 30,
        "endpoint__timeout": 0.5,
    }
    return generate(world, **(given | changes))


def check_rows(world: Path, server: FaultyServer, n: int = 2, prefix: str = "chat") -> None:
    """Each prompt once, in order, with its own answers; each sample asked for with its own seed."""
    rows = rows_of(world / "out.jsonl")
    assert [row["k"] for row in rows] == list(range(NUM))
    seeds = Counter()
    for number, row in enumerate(rows):
        assert "error" not in row and len(row["responses"]) == n
        for text in row["responses"]:
            assert text.startswith(f"answer to <{prefix} {number}> under ")
            seeds[text.rpartition("under ")[2]] += 1
        assert row["generation"]["finish"] == ["stop"] * n
        assert row["generation"]["model"] == "some/model"
    assert len(seeds) == NUM * n


def files_with(folder: Path, text: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_third_of_the_calls_fails_and_every_prompt_is_answered_once(
    world: Path, seed: int
) -> None:
    said = io.StringIO()
    with (
        serving(rate=0.3, seed=seed, faults=FAULTS) as server,
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        summary = served(world, server)
    check_rows(world, server)
    assert sum(server.failed.values()) > 15 and set(server.failed) >= {"429", "500", "half"}
    # A sample that was answered whole is never asked for again.
    assert sum(server.answered.values()) == NUM * 2 and max(server.answered.values()) == 1
    assert summary["prompts"] == NUM and summary["responses"] == 2 * NUM
    assert sum(summary["retries"].values()) == sum(server.failed.values())
    assert summary["completion_tokens"] == 5 * 2 * NUM
    assert server.keys == {f"Bearer {KEY}"} and 2 <= server.most_at_once <= 8
    assert KEY not in said.getvalue() and not files_with(world, KEY)
    settings = rows_of(world / "out.jsonl")[0]["generation"]["settings"]
    assert settings["base_url"] == server.base_url and "weights" not in settings
    body = server.asked[0]
    assert body["model"] == "some/model" and body["max_tokens"] == 12
    assert body["temperature"] == 1.0 and not {"n", "stop", "top_k", "min_p"} & set(body)


def test_plain_text_goes_to_completions_and_settings_are_sent(world: Path) -> None:
    changes: dict[str, Any] = {"stop": ["under"], "top_k": 7, "min_p": 0.1, "temperature": 0.5}
    changes |= {"endpoint__token_limit": "max_completion_tokens", "top_p": 0.9}
    with serving() as server:
        served(world, server, data=str(world / "texts.jsonl"), **changes)
    assert set(server.paths) == {"/v1/completions"}
    body = server.asked[0]
    assert body["stop"] == ["under"] and body["top_k"] == 7 and body["min_p"] == 0.1
    assert body["max_completion_tokens"] == 12 and "max_tokens" not in body
    assert body["temperature"] == 0.5 and body["top_p"] == 0.9
    rows = rows_of(world / "out.jsonl")
    # This server ignores stops: the answer is cut here.
    assert [row["responses"][0] for row in rows] == [f"answer to <text {n}> " for n in range(NUM)]


def test_several_samples_at_once_are_topped_up(world: Path) -> None:
    with serving(rate=0.2, most_choices=3) as server:
        served(world, server, n=5, endpoint__samples_per_request=4)
    check_rows(world, server, n=5)
    assert {body.get("n") for body in server.asked} == {4, None}
    assert rows_of(world / "out.jsonl")[0]["generation"]["completion_tokens"][0] is None


def test_prompts_that_fail_are_reported_and_tried_again(world: Path) -> None:
    """A server that refuses some prompts for good, then one that answers them."""
    with serving(rate=0.2, faults=["400"], seed=3) as server:
        with pytest.raises(EndpointError, match=r"of 40 prompts got no whole answer") as caught:
            served(world, server, endpoint__concurrency=1)
        again = server.base_url
    failed = [row for row in rows_of(world / "out.jsonl") if "error" in row]
    assert str(caught.value).startswith(f"{len(failed)} of 40") and caught.value.exit_code == 1
    assert 5 < len(failed) < 40
    assert all(row["error"] == "400: status 400 with Bearer [key]" for row in failed)
    kept = [row["generation"]["samples"] for row in failed if row["responses"]]
    assert kept and all(len(numbers) == 1 for numbers in kept)
    summary = json.loads((world / "out.summary.json").read_text())
    assert summary["failed"] == len(failed) and summary["failed_reasons"] == {"400": len(failed)}
    assert {row["generation"]["reason"] for row in failed} == {"400"}
    assert not files_with(world, KEY)
    lacking = NUM * 2 - sum(len(row["responses"]) for row in rows_of(world / "out.jsonl"))
    with serving(rate=0.3, port=int(again.rpartition(":")[2].partition("/")[0])) as server:
        found = served(world, server, endpoint__concurrency=2)
    assert sum(server.answered.values()) == lacking and found["failed"] == 0
    check_rows(world, server)


def test_prompts_that_are_refused_one_after_another_do_not_end_the_run(world: Path) -> None:
    """Too long for the server, say: the others are answered, also after a kill before these."""
    with serving(script=["ok"] * 4 + ["400"] * 60) as server:
        with pytest.raises(EndpointError, match=r"30 of 40 prompts got no.*such as 400: status"):
            served(world, server, endpoint__concurrency=1)
        errors = ["error" in row for row in rows_of(world / "out.jsonl")]
        assert errors == [False] * 2 + [True] * 30 + [False] * 8
        server._script = ["400"] * 60  # the first of what is left are still refused
        with pytest.raises(EndpointError, match=r"30 of 40 prompts"):
            served(world, server, endpoint__concurrency=1)


def test_a_server_that_refuses_from_the_first_on_is_not_asked_for_ever(world: Path) -> None:
    refused = pytest.raises(EndpointError, match=r"failed 8 prompts.*mend the settings")
    with serving(rate=1.0, faults=["400"]) as server, refused as caught:
        served(world, server, endpoint__concurrency=1)
    assert len(server.asked) == 16 and KEY not in str(caught.value)


@pytest.mark.parametrize("place", [0, 2])
def test_a_prompt_that_is_forbidden_is_set_aside_also_the_first(world: Path, place: int) -> None:
    """As moderation answers; the others are answered, and the run says which and why."""
    script = ["ok"] * (2 * place) + ["403 flagged"] * 2
    with serving(script=script) as server:
        told = r"^1 of 40 prompts got no whole answer \(1 times 403; such as 403: flagged Bearer"
        with pytest.raises(EndpointError, match=told):
            served(world, server, endpoint__concurrency=1)
        rows = rows_of(world / "out.jsonl")
        assert ["error" in row for row in rows] == [n == place for n in range(NUM)]
        summary = json.loads((world / "out.summary.json").read_text())
        assert summary["failed_reasons"] == {"403": 1}
        before = len(server.asked)
        served(world, server)
        assert len(server.asked) == before + 2
    check_rows(world, server)


def test_a_key_that_is_forbidden_ends_the_run_with_the_server_s_words(world: Path) -> None:
    with serving(rate=1.0, faults=["403 no such account"]) as server:
        told = r"failed 3 prompts.*403: no such account.*answered none before.*put a valid key"
        with pytest.raises(EndpointError, match=told) as caught:
            served(world, server, endpoint__concurrency=1)
    assert len(server.asked) == 6 and KEY not in str(caught.value)
    assert not (world / "out.jsonl").exists()


def test_a_key_that_is_blocked_on_the_way_ends_the_run_and_what_there_is_stays(
    world: Path,
) -> None:
    with serving(script=["ok"] * 10, rate=1.0, faults=["402 no credit"]) as server:
        told = r"failed 8 prompts one after another.*402: no credit.*what was answered is kept"
        with pytest.raises(EndpointError, match=told):
            served(world, server, endpoint__concurrency=1)
        assert len(server.asked) == 10 + 16 and journal_size(world / "out.jsonl") > 0
        server.rate = 0.0
        served(world, server)
        assert sum(server.answered.values()) == 80 and max(server.answered.values()) == 1
    check_rows(world, server)


def test_a_few_prompts_that_are_all_refused_are_no_output(world: Path) -> None:
    write_rows(world / "few.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    few = {"data": str(world / "few.jsonl"), "n": 1}
    with serving(rate=1.0, faults=["422 no such setting"]) as server:
        with pytest.raises(EndpointError, match=r"failed 2 prompts.*422: no such setting.*mend"):
            served(world, server, **few)
        assert len(server.asked) == 2 and not (world / "out.jsonl").exists()
        server._script = ["ok"]
        with pytest.raises(EndpointError, match=r"^1 of 2 prompts got no whole answer"):
            served(world, server, **few, endpoint__concurrency=1)
    assert ["error" in row for row in rows_of(world / "out.jsonl")] == [False, True]


def test_an_answer_without_an_end_is_asked_for_again(world: Path) -> None:
    with serving(script=["endless"] * 2) as server:
        summary = served(world, server, endpoint__timeout=20)
    assert summary["retries"] == {"too long": 2} and server.sent < 40e6
    check_rows(world, server)


def test_what_a_template_is_given_goes_where_servers_look_for_it(world: Path) -> None:
    turn = [{"role": "user", "content": "chat 0"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = {"prompt": turn, "tools": [tool], "chat_template_kwargs": {"model": "x", "think": False}}
    write_rows(world / "prompts.jsonl", [row])
    with serving() as server:
        served(world, server, n=1)
    (body,) = server.asked
    assert body["tools"] == [tool] and body["model"] == "some/model"
    assert body["chat_template_kwargs"] == {"model": "x", "think": False} and "think" not in body


def test_a_server_that_is_gone_stops_the_run_and_keeps_what_there_is(world: Path) -> None:
    with serving(script=["ok"] * 30, rate=1.0, faults=["500"]) as server:
        with pytest.raises(EndpointError, match=r"failed 8 prompts one after another.*500"):
            served(world, server, endpoint__max_retries=1, endpoint__concurrency=1)
        assert not (world / "out.jsonl").exists() and journal_size(world / "out.jsonl") > 0
        server.rate = 0.0
        served(world, server)
        assert sum(server.answered.values()) == 80 and max(server.answered.values()) == 1
    check_rows(world, server)


@pytest.mark.parametrize("status", ["401", "404"])
def test_a_wrong_key_or_address_stops_at_once_in_one_line(world: Path, status: str) -> None:
    refused = pytest.raises(EndpointError, match=f"answers {status}")
    with serving(rate=1.0, faults=[status]) as server, refused as caught:
        served(world, server)
    assert len(server.asked) <= 8
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    assert not files_with(world, KEY) and not (world / "out.jsonl").exists()


def test_a_key_in_an_answer_is_struck_out(world: Path) -> None:
    with serving(script=["answer key"]) as server:
        served(world, server, endpoint__concurrency=1)
    assert rows_of(world / "out.jsonl")[0]["responses"][0] == "your key is Bearer [key]"
    assert not files_with(world, KEY)


def test_a_kill_loses_only_what_was_under_way(world: Path) -> None:
    with serving(rate=0.2, delay=0.01, faults=["500", "half"]) as server:
        process = start(lambda: served(world, server))
        assert wait_for(lambda: journal_size(world / "out.jsonl") > 4000, process)
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        before = sum(server.answered.values())
        assert 0 < before < 80
        served(world, server)
        # What was asked but not yet written may be asked again: at most the requests under way
        # and what prompts with an open sample had already got.
        assert sum(server.answered.values()) <= 80 + 16
    check_rows(world, server)


def test_a_signal_ends_requests_under_way(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(script=["ok"] * 20, rate=1.0, faults=["never"]) as server:
        process = start(lambda: served(world, server, endpoint__timeout=60))
        assert wait_for(lambda: len(server.asked) > 22, process)
        os.kill(process.pid, signal.SIGTERM)
        assert ended(process) == 143
    assert "prompts are answered; run the same command to go on" in capfd.readouterr().out
    assert journal_size(world / "out.jsonl") > 0


def test_inside_a_loop_that_runs_as_in_a_notebook(world: Path) -> None:
    with serving(rate=0.1, faults=["500"]) as server:

        async def cell() -> dict[str, Any]:
            return served(world, server)

        assert asyncio.run(cell())["failed"] == 0
    check_rows(world, server)


def test_two_processes_share_the_prompts_and_the_limits(world: Path) -> None:
    with serving(rate=0.2, faults=["500", "429", "half"]) as server:
        codes = together(lambda: served(world, server, endpoint__requests_per_minute=60_000), 2)
        assert codes == [0, 0]
    check_rows(world, server)
    assert sum(server.answered.values()) == 80 and max(server.answered.values()) == 1
