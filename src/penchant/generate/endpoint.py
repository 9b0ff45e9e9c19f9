"""A server with OpenAI's protocol, asked until it answers: retries, back-off, limits, time-outs.

What is asked again: no connection, one that breaks, no answer in time, 408, 409, 425, 429 and 5xx,
and an answer that is not what the protocol says, or longer than it can be. A redirection, 401, 404
and 405 say that no request can succeed; any other status is a refusal of the one request. The key
is read from the environment, sent in one header, and struck out of every message.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar, final

from penchant.errors import EndpointError, MissingExtraError, RecipeError
from penchant.generate.config import EndpointConfig
from penchant.generate.pace import Pace, backoff, retry_after

DEFAULT_KEY = "OPENAI_API_KEY"
_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
_HOPELESS = frozenset({301, 302, 307, 308, 401, 404, 405})
_OF_PROMPT = frozenset({400, 413, 414, 422, 451})
"""Refusals that concern what is asked; others (402, 403, ...) may concern who asks."""
_LONGEST = 200
"""Characters of a server's message that are shown."""
_MOST_BYTES = 2**24
"""Of an answer, where its length has no limit of its own."""
_MOST_OF_ERROR = 2**16
"""Bytes that are read of an error's body."""
_SECRET = 16
"""Characters of a key that is one; servers without keys are given words such as `none`."""

Read = TypeVar("Read")


class RequestFailedError(Exception):
    """A request that ended without an answer; caught where its row is written."""

    def __init__(self, message: str, kind: str, status: int | None = None) -> None:
        """
        Args:
            kind: in a word, to be counted.
            status: of a refusal: the server is well, and will not answer this request.
        """
        super().__init__(message)
        self.kind, self.status = kind, status

    @property
    def is_refusal(self) -> bool:
        """Whether asking again is of no use."""
        return self.status is not None

    @property
    def is_of_prompt(self) -> bool:
        """Whether it is refused for what it asks, so that it says nothing of other prompts."""
        return self.status in _OF_PROMPT


class _TryAgainError(Exception):
    """What went wrong, and how long the server asks to wait [s]."""

    def __init__(self, kind: str, detail: str, asked: float | None = None) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.asked = kind, asked


@final
class Endpoint:
    """One server; use as an asynchronous context manager."""

    def __init__(self, config: EndpointConfig, num_processes: int = 1) -> None:
        """
        Args:
            num_processes: that share the limits per minute.
        Raises:
            RecipeError: the environment variable that is named holds no key.
            MissingExtraError: the HTTP client is not installed.
        """
        try:
            import httpx2 as httpx
        except ImportError:
            raise MissingExtraError(
                "backend=openai needs an HTTP client: pip install 'penchant[endpoint]'"
            ) from None
        self.config = config
        self.failures: Counter[str] = Counter()
        """Attempts that failed, by kind, without refusals, which are not tried again."""
        self._key = key_of(config)
        share = [
            None if limit is None else limit / num_processes
            for limit in (config.requests_per_minute, config.tokens_per_minute)
        ]
        self._pace = Pace(*share)
        self._rng = random.Random()
        self._httpx = httpx
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=config.concurrency)
        self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=limits)

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[dict[str, Any]], Read],
        *,
        num_tokens: int = 0,
        most_bytes: int = _MOST_BYTES,
    ) -> Read:
        """What `read` makes of the server's answer.

        Args:
            path: below the base address, as `chat/completions`.
            read: raises ValueError, KeyError, TypeError or IndexError for an answer that is none.
            num_tokens: about how many the request will use, for the limit per minute.
            most_bytes: of the answer; a longer one is none.
        Raises:
            RequestFailedError: this request cannot be answered, or not after all attempts.
            EndpointError: no request can be: a wrong key, address or model.
        """
        for attempt in range(self.config.max_retries + 1):
            await self._pace.turn(num_tokens)
            try:
                answer = await self._attempt(path, body, most_bytes)
                found = self._read(answer, read)
            except _TryAgainError as problem:
                self.failures[problem.kind] += 1
                kind, last = problem.kind, self.redacted(str(problem))
                if problem.asked is not None and self._pace.hold(problem.asked):
                    self._tell_of_wait(problem.asked, last)
                if attempt < self.config.max_retries:
                    pause = backoff(attempt, self.config.backoff, problem.asked, self._rng)
                    await asyncio.sleep(pause)
            else:
                self._pace.used(num_tokens, total_tokens(answer) or num_tokens)
                return found
        attempts = self.config.max_retries + 1
        raise RequestFailedError(f"{last} (after {attempts} attempt{'s' * (attempts > 1)})", kind)

    async def _attempt(self, path: str, body: Mapping[str, Any], most_bytes: int) -> Any:
        url = f"{self.config.base_url.rstrip('/')}/{path}"
        try:
            async with (
                asyncio.timeout(self.config.timeout),
                self._client.stream("POST", url, json=body) as response,
            ):
                status = response.status_code
                content = await _content(response, most_bytes if status == 200 else _MOST_OF_ERROR)
        except TimeoutError:
            raise _TryAgainError("timeout", f"no answer in {self.config.timeout:g} s") from None
        except self._httpx.HTTPError as error:
            said = self._shown(f"{type(error).__name__} {error}")
            raise _TryAgainError("connection", said) from None
        if status != 200:
            said = self._shown(_message(content))
            self._refuse(status, said, path, retry_after(response.headers.get("retry-after")))
        if len(content) > most_bytes:
            raise _TryAgainError("too long", f"an answer of more than {most_bytes:,} bytes")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise _TryAgainError("not JSON", self._shown(_text(content))) from None

    def _refuse(self, status: int, said: str, path: str, asked: float | None) -> NoReturn:
        """What a status means: to be tried again, no request of ours, or not this one."""
        if status in _AGAIN:
            raise _TryAgainError(str(status), said, asked)
        if status in _HOPELESS:
            raise EndpointError(
                f"{self.config.base_url} answers {status} to {path}: {said}; {self.advice(status)}"
            )
        raise RequestFailedError(f"{status}: {said}", str(status), status)

    def _tell_of_wait(self, seconds: float, why: str) -> None:
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
        print(
            f"note: {self.config.base_url} asks to wait {seconds:.0f} s ({why}); nothing is sent "
            f"to it before {until}",
            file=sys.stderr,
            flush=True,
        )

    def _read(self, answer: Any, read: Callable[[dict[str, Any]], Read]) -> Read:
        if not isinstance(answer, dict):
            raise _TryAgainError("malformed", f"a JSON {type(answer).__name__}")
        if answer.get("error") and not answer.get("choices"):
            raise _TryAgainError("error under status 200", self._shown(_said(answer)))
        try:
            return read(answer)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            said = self._shown(f"{type(error).__name__} {error}")
            raise _TryAgainError("malformed", said) from None

    def advice(self, status: int) -> str:
        """What to do about a status that all requests get."""
        if status in (401, 403):
            name = self.config.api_key_env or DEFAULT_KEY
            return f"put a valid key into the environment variable {name}"
        return (
            "check endpoint.base_url (with its version, as in .../v1) and the model's name; where "
            "the server knows conversations only, set prompt_as=user"
        )

    def redacted(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._key, "[key]") if self._key else text

    def of_answer(self, text: str) -> str:
        """A model's words without the key; one that may be an ordinary word stays."""
        return self.redacted(text) if self._key and len(self._key) >= _SECRET else text

    def _shown(self, text: str) -> str:
        """The beginning in one line; the key goes first, so that no part of it is left."""
        flat = " ".join(self.redacted(text).split())
        return flat if len(flat) <= _LONGEST else f"{flat[:_LONGEST]}..."


def total_tokens(answer: Mapping[str, Any]) -> int | None:
    """Prompt and answer together, where the server counted them."""
    usage = answer.get("usage")
    found = usage.get("total_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None


def key_of(config: EndpointConfig) -> str | None:
    """The key, where the environment holds one. Raises RecipeError where it lacks what is named."""
    name = config.api_key_env or DEFAULT_KEY
    key = os.environ.get(name, "").strip()
    if not key and config.api_key_env is not None:
        # What was given is not shown: some give the key itself.
        raise RecipeError(
            "endpoint.api_key_env: the environment has no variable of the name given; set one to "
            "the key, or leave api_key_env out for a server without keys"
        )
    if not key.isascii() or not key.isprintable():
        raise RecipeError(
            f"the environment variable {name} holds what no key can hold; set it anew"
        )
    return key or None


async def _content(response: Any, most: int) -> bytes:
    """The body; of one that is longer, somewhat more than so many bytes."""
    content = bytearray()
    async with aclosing(response.aiter_bytes()) as parts:
        async for part in parts:
            content += part
            if len(content) > most:
                break
    return bytes(content)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _message(content: bytes) -> str:
    """What an error's body says."""
    try:
        return _said(json.loads(content))
    except (ValueError, RecursionError):
        return _text(content)


def _said(body: Any) -> str:
    if isinstance(body, dict):
        error = body.get("error", body.get("detail", body.get("message", body)))
        if isinstance(error, dict):
            error = error.get("message", error)
        body = error
    return body if isinstance(body, str) else json.dumps(body)
