"""An endpoint that fails: what is asked again, what is not, how fast, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from email.utils import formatdate
from typing import Any

import pytest

from penchant.errors import EndpointError, RecipeError
from penchant.generate import endpoint as endpoints
from penchant.generate import pace
from penchant.generate.config import EndpointConfig
from penchant.generate.endpoint import Endpoint, RequestFailedError
from penchant.generate.pace import Pace, backoff, retry_after
from penchant.generate.served import _choices
from penchant.recipe import load_recipe
from tests.generate.faulty_server import FAULTS, FaultyServer, serving

KEY = "sk-very-secret-4711"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "seed": 1}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _content(answer: Any) -> str:
    return answer["choices"][0]["message"]["content"] + ""


def ask(
    server: FaultyServer, *, read: Any = _content, most_bytes: int = 2**24, **settings: Any
) -> tuple[Any, Endpoint]:
    """One request; its answer and the endpoint with its counts."""
    given = {"base_url": server.base_url, "backoff": 0.001, "timeout": 20.0, **settings}

    async def run() -> tuple[Any, Endpoint]:
        async with Endpoint(EndpointConfig(**given)) as endpoint:
            try:
                found = await endpoint.ask("chat/completions", BODY, read, most_bytes=most_bytes)
            except RequestFailedError as error:
                return error, endpoint
            return found, endpoint

    return asyncio.run(run())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_until_the_answer_comes(fault: str) -> None:
    with serving(script=[fault, fault]) as server:
        timeout = 0.2 if fault == "never" else 20.0
        text, endpoint = ask(server, timeout=timeout)
    assert text == "answer to <Hi> under 1.0"
    assert len(server.asked) == 3 and server.asked == [BODY] * 3
    assert server.keys == {f"Bearer {KEY}"}
    assert sum(endpoint.failures.values()) == 2 and len(endpoint.failures) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_fails_the_request_in_one_line_without_the_key(fault: str) -> None:
    with serving(rate=1.0, faults=[fault]) as server:
        error, _ = ask(server, timeout=0.2 if fault == "never" else 20.0, max_retries=2)
    assert isinstance(error, RequestFailedError) and len(server.asked) == 3
    assert "(after 3 attempts)" in str(error)
    assert KEY not in str(error) and "\n" not in str(error)
    assert ("[key]" in str(error)) == (fault in ("echo", "429", "500"))


@pytest.mark.parametrize(
    ("status", "is_of_prompt"),
    [("400", True), ("413", True), ("422", True), ("402", False), ("403", False)],
)
def test_what_concerns_one_request_is_not_tried_again(status: str, is_of_prompt: bool) -> None:
    with serving(script=[status]) as server:
        error, endpoint = ask(server)
    assert isinstance(error, RequestFailedError) and len(server.asked) == 1
    assert str(error) == f"{status}: status {status} with Bearer [key]" and error.kind == status
    assert error.is_refusal and error.is_of_prompt is is_of_prompt
    assert not endpoint.failures  # these are attempts that are made again


@pytest.mark.parametrize(
    ("status", "advice"), [("401", "OPENAI_API_KEY"), ("401", "valid key"), ("404", "base_url")]
)
def test_what_no_request_survives_stops_at_once(status: str, advice: str) -> None:
    with serving(script=[status]) as server, pytest.raises(EndpointError, match=advice) as caught:
        ask(server)
    assert len(server.asked) == 1 and KEY not in str(caught.value)


def test_a_server_that_is_not_there_fails_the_request() -> None:
    with serving() as server:
        address = server.base_url  # nothing listens there any more, once it has ended
    config = EndpointConfig(base_url=address, max_retries=1, backoff=0.001)

    async def run() -> None:
        async with Endpoint(config) as endpoint:
            await endpoint.ask("completions", {}, lambda answer: answer)

    with pytest.raises(RequestFailedError, match=r"connection: ConnectError.*after 2 attempts"):
        asyncio.run(run())


def test_a_server_s_retry_after_is_honoured_by_all() -> None:
    """A lower bound only: the server asks for a second."""
    with serving(script=["429"], retry_after="1") as server:
        config = EndpointConfig(base_url=server.base_url, backoff=0.001)

        async def run() -> None:
            async with Endpoint(config) as endpoint:
                first = asyncio.create_task(endpoint.ask("completions", _text("a"), _same))
                while not endpoint.failures:
                    await asyncio.sleep(0.005)
                await asyncio.gather(first, endpoint.ask("completions", _text("b"), _same))

        asyncio.run(run())
    assert len(server.times) == 3
    assert min(server.times[1:]) - server.times[0] >= 0.95


def _text(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "seed": 1}


def _same(answer: dict[str, Any]) -> dict[str, Any]:
    return answer


def test_the_key_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        ask(server)
        monkeypatch.setenv("MY_KEY", "mine")
        ask(server, api_key_env="MY_KEY")
        monkeypatch.delenv("OPENAI_API_KEY")
        ask(server)
    assert server.keys == {f"Bearer {KEY}", "Bearer mine", None}
    with pytest.raises(RecipeError, match="api_key_env: the environment has no variable"):
        Endpoint(EndpointConfig(base_url="http://x/v1", api_key_env="NOT_THERE"))
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(RecipeError, match="MY_KEY holds what no key can hold") as caught:
        Endpoint(EndpointConfig(base_url="http://x/v1", api_key_env="MY_KEY"))
    assert "two" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": null, "finish_reason": "stop"}]}',
        b'{"choices": ["text"]}',
        b'{"choices": [{"message": {"content": "half"}, "finish_reason": "error"}]}',
        b'{"choices": [{"message": {"content": "half"}, "finish_reason": null}]}',
        b'{"choices": []}',
        b'{"error": {"message": "overloaded", "code": 502}}',
        b"[" * 200_000,
        b"null",
        b"",
    ],
)
def test_an_answer_that_is_none_is_asked_for_again(body: bytes) -> None:
    with serving(script=[body.decode()]) as server:
        text, endpoint = ask(server, read=lambda answer: _choices(answer, is_chat=True)[0][0][0])
    assert text == "answer to <Hi> under 1.0" and len(server.asked) == 2
    assert sum(endpoint.failures.values()) == 1


def test_an_answer_that_is_too_long_is_none() -> None:
    text = "x" * 300_000
    body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
    with serving(script=[body]) as server:
        assert ask(server, most_bytes=len(body))[0] == text and len(server.asked) == 1
    with serving(script=[body, body]) as server:
        found, endpoint = ask(server, most_bytes=len(body) - 1)
    assert found == "answer to <Hi> under 1.0" and endpoint.failures == {"too long": 2}
    with serving(rate=1.0, faults=["endless"]) as server:
        error, _ = ask(server, most_bytes=10**6, max_retries=1)
    assert str(error) == "too long: an answer of more than 1,000,000 bytes (after 2 attempts)"
    assert server.sent < 40e6  # no more than what the system holds on its way


def test_a_long_error_is_read_in_part_and_its_status_counts() -> None:
    with serving(script=[f"400 {'x' * 10**6}"]) as server:
        error, _ = ask(server)
    assert isinstance(error, RequestFailedError) and error.status == 400
    assert len(str(error)) < 300


def test_an_error_under_status_200_is_what_is_said() -> None:
    with serving(rate=1.0, faults=['{"error": {"message": "over capacity"}}']) as server:
        error, _ = ask(server, max_retries=0)
    assert str(error) == "error under status 200: over capacity (after 1 attempt)"


@pytest.mark.parametrize("usage", ["none", [1], 7, {"total_tokens": "many"}, None])
def test_counts_of_any_kind_are_no_error(usage: Any) -> None:
    answer = {"choices": [{"message": {"content": "Ho"}, "finish_reason": "stop"}], "usage": usage}
    with serving(script=[json.dumps(answer)]) as server:
        text, _ = ask(server, read=lambda answer: _choices(answer, is_chat=True)[0][0][0])
    assert text == "Ho"


@pytest.mark.parametrize("status", ["400", "500"])
def test_no_part_of_the_key_is_left_where_a_message_is_cut(status: str) -> None:
    for before in range(170, 200, 3):
        with serving(rate=1.0, faults=[f"{status} {'x' * before}"]) as server:
            error, _ = ask(server, max_retries=0)
        assert "xxx" in str(error) and KEY[:4] not in str(error)


def test_a_placeholder_for_a_key_is_an_ordinary_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, text in (("none", "none of it is none"), (KEY, "[key]")):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        endpoint = Endpoint(EndpointConfig(base_url="http://x/v1"))
        assert endpoint.of_answer(text.replace("[key]", KEY)) == text


@pytest.mark.parametrize("given", [KEY, "two words", "a=b"])
def test_a_key_in_place_of_its_variable_s_name_is_not_shown(given: str) -> None:
    with pytest.raises(RecipeError, match="never the key itself") as caught:
        load_recipe(
            "generate",
            None,
            ["model=m", "data=d.jsonl", "output=o.jsonl", "backend=openai",
             "endpoint=http://x/v1", f"endpoint.api_key_env={given}"],
        )  # fmt: skip
    assert given not in str(caught.value)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(pace.asyncio, "sleep", clock.sleep)
    return clock


def times_of(pace: Pace, clock: Clock, sizes: list[int]) -> list[float]:
    async def run() -> list[float]:
        found = []
        for size in sizes:
            await pace.turn(size)
            found.append(clock.now - 100.0)
        return found

    return asyncio.run(run())


def test_requests_and_tokens_per_minute(clock: Clock) -> None:
    assert times_of(Pace(), clock, [9, 9]) == [0.0, 0.0]
    assert times_of(Pace(requests_per_minute=30), clock, [1, 1, 1]) == [0.0, 2.0, 4.0]
    clock.now = 100.0
    # 600 tokens a minute are 10 a second; the first may go at once.
    by_tokens = Pace(tokens_per_minute=600)
    assert times_of(by_tokens, clock, [50, 20, 10]) == [0.0, 5.0, 7.0]
    by_tokens.used(10, 110)  # the last one took 100 more than was guessed
    assert times_of(by_tokens, clock, [1])[0] == pytest.approx(18.0)
    clock.now = 100.0
    both = Pace(requests_per_minute=60, tokens_per_minute=600)
    assert times_of(both, clock, [5, 30, 1]) == [0.0, 1.0, pytest.approx(4.0)]
    both.hold(20.0)
    # What was held is spaced afterwards as it would be before.
    assert times_of(both, clock, [1, 1, 1]) == [pytest.approx(t) for t in (24.0, 25.0, 26.0)]


def test_requests_that_wait_for_a_hold_are_not_sent_together(clock: Clock) -> None:
    async def run() -> list[float]:
        pace, sent = Pace(requests_per_minute=60), []
        pace.hold(20.0)

        async def one() -> None:
            await pace.turn(1)
            sent.append(clock.now - 100.0)

        await asyncio.gather(*(one() for _ in range(4)))
        return sent

    assert asyncio.run(run()) == [20.0, 21.0, 22.0, 23.0]


def test_a_wait_is_told_once(clock: Clock) -> None:
    """Requests that were under way together are told to wait within moments of each other."""
    pace = Pace()
    assert not pace.hold(4.0)
    assert pace.hold(30.0) and not pace.hold(30.0)
    clock.now += 2.0
    assert not pace.hold(30.0) and not pace.hold(10.0)
    assert pace.hold(60.0)  # longer than what was told
    clock.now += 60.0
    assert pace.hold(30.0)


def test_a_server_that_asks_to_wait_is_named_with_its_words(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(script=["429 too many", "ok", "429 too many"], retry_after="90") as server:
        assert ask(server)[0] == "answer to <Hi> under 1.0"
    assert clock.now >= 190.0
    said = capsys.readouterr().err
    pattern = (
        r"note: http://127\.0\.0\.1:\d+/v1 asks to wait 90 s \(429: too many Bearer \[key\]\); "
        r"nothing is sent to it before \d\d:\d\d:\d\d\n"
    )
    assert re.fullmatch(pattern, said) and KEY not in said
    with serving(script=["429"], retry_after="2") as server:
        ask(server)
    assert capsys.readouterr().err == ""


def test_backoff_doubles_with_jitter_and_never_undercuts_the_server() -> None:
    rng = random.Random(0)
    for attempt in range(12):
        drawn = [backoff(attempt, 1.0, None, rng) for _ in range(200)]
        middle = min(2.0**attempt, 60.0)
        assert 0.5 * middle <= min(drawn) and max(drawn) <= 1.5 * middle
        assert max(drawn) - min(drawn) > 0.5 * middle
    assert all(backoff(0, 1.0, 7.0, rng) >= 7.0 for _ in range(50))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("1e9", 3600.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("nan", None),
        ("Mon, 20 Nov 2006 10:00:00 +99999999999999", None),
        ("Mon, 20 Nov 99999 10:00:00 GMT", None),
        ("Mon, 20 Nov 2006 10:00:00 +9999", None),
    ],
)
def test_retry_after_in_seconds(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


def test_retry_after_as_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    found = retry_after(formatdate(time.time() + 100, usegmt=True))
    assert found is not None and 90 < found <= 101
    assert retry_after(formatdate(time.time() - 100, usegmt=True)) == 0.0
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    try:  # the old form names no zone: it is GMT, wherever we are
        found = retry_after(time.asctime(time.gmtime(time.time() + 100)))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found is not None and 90 < found <= 101


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r"pip install 'penchant\[endpoint\]'"):
        endpoints.Endpoint(EndpointConfig(base_url="http://x/v1"))
