"""Answers from a server with OpenAI's protocol: many requests at once, each sample for itself.

Conversations go to chat/completions, plain text goes to completions. A sample's `seed` follows
from seed, prompt and number of the sample; whether it decides anything is the server's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn, final

from penchant.errors import EndpointError
from penchant.generate.answers import Answer, Answered, Task, Watch
from penchant.generate.choose import Sampling
from penchant.generate.config import EndpointConfig
from penchant.generate.endpoint import Endpoint, RequestFailedError
from penchant.generate.stops import cut_at_stop

_CHECK_SECONDS = 0.1
_NOT_WHOLE = frozenset({"abort", "error"})
"""How some servers say that an answer broke off."""
_FEWEST_FAILURES = 8
"""Prompts that fail one after another, at least, before the server counts as gone."""
_FEWEST_REFUSALS = 3
"""The same before its first answer, where what is refused may be the key: its words are shown."""
_SEEDS = 2**31
_BYTES_PER_TOKEN = 4
"""About, for the limit of tokens per minute; corrected by what the server counts."""
_MOST_BYTES, _MOST_BYTES_PER_TOKEN = 2**20, 2**10
"""Of an answer: so many, and so many more for each token that was asked for."""


@dataclass
class _Open:
    """A task under way."""

    task: Task
    answers: dict[int, Answer]
    waiting: int
    """Requests that have not ended."""
    prompt_tokens: int | None = None
    errors: list[RequestFailedError] = field(default_factory=list)


@dataclass
class _Request:
    """Some samples of a task that are asked for together."""

    owner: _Open
    samples: tuple[int, ...]


@final
class ServedModel:
    """A model behind an endpoint."""

    def __init__(
        self,
        config: EndpointConfig,
        model: str,
        sampling: Sampling,
        stop: Sequence[str],
        num_processes: int = 1,
    ) -> None:
        """
        Args:
            model: the name it goes by there.
            num_processes: that share the endpoint's limits per minute.
        """
        self.endpoint = Endpoint(config, num_processes)
        self.failures = self.endpoint.failures
        self.config, self.model = config, model
        self.sampling, self.stop = sampling, tuple(stop)
        self._failed_in_a_row = 0
        self._has_answered = False
        self._last_error: RequestFailedError | None = None
        self._is_refusing = num_processes == 1
        """Whether every prompt that failed was refused; one process of several sees only some."""

    def answer(self, tasks: Sequence[Task], watch: Watch) -> None:
        """Draws the samples of all tasks; a prompt that gets no answer is finished with an error.

        Raises EndpointError where no request can succeed, or one prompt after another fails.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._answer(tasks, watch))
            return
        # A notebook has a loop of its own, which cannot run another one.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, self._answer(tasks, watch)).result()

    async def _answer(self, tasks: Sequence[Task], watch: Watch) -> None:
        requests = self._requests(tasks)
        self._has_answered = watch.num_before > 0
        async with self.endpoint:
            pending = {
                asyncio.create_task(self._work(requests, watch))
                for _ in range(self.config.concurrency)
            }
            try:
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=_CHECK_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                    )
                    watch.check()
                    for worker in done:
                        worker.result()
                self._check_any_answer(len(tasks))
            finally:
                for worker in pending:
                    worker.cancel()
                await asyncio.gather(*pending, return_exceptions=True)

    def _requests(self, tasks: Sequence[Task]) -> Iterator[_Request]:
        """In the order of the tasks, so that few of them are under way at the same time."""
        size = self.config.samples_per_request
        for task in tasks:
            parts = [task.samples[i : i + size] for i in range(0, len(task.samples), size)]
            owner = _Open(task, dict(task.known), len(parts))
            yield from (_Request(owner, part) for part in parts)

    async def _work(self, requests: Iterator[_Request], watch: Watch) -> None:
        for request in requests:  # shared: each request goes to one worker
            owner = request.owner
            try:
                await self._draw(request, watch)
            except RequestFailedError as error:
                owner.errors.append(error)
            owner.waiting -= 1
            if not owner.waiting:
                why = owner.errors[0] if owner.errors else None
                shown = (None, None) if why is None else (str(why), why.kind)
                found = owner.answers, owner.prompt_tokens
                watch.finished(Answered(owner.task.question, *found, *shown))
                self._count(why)

    def _check_any_answer(self, num_prompts: int) -> None:
        """Raises EndpointError where all there were to ask, be they few, were refused."""
        if self._last_error is not None and self._is_refusing and not self._has_answered:
            self._give_up(self._last_error, num_prompts)

    def _count(self, error: RequestFailedError | None) -> None:
        """Raises EndpointError where the server fails prompt after prompt."""
        if error is None:
            self._failed_in_a_row = 0
            return
        self._last_error = error
        self._is_refusing = self._is_refusing and error.is_refusal
        if error.is_of_prompt and self._has_answered:
            return  # the prompt's own fault: it is too long, say, and its neighbours may be as well
        self._failed_in_a_row += 1
        most = max(_FEWEST_FAILURES, 2 * self.config.concurrency)
        if error.is_refusal and not error.is_of_prompt and not self._has_answered:
            most = _FEWEST_REFUSALS
        if self._failed_in_a_row >= most:
            self._give_up(error, self._failed_in_a_row)

    def _give_up(self, error: RequestFailedError, num_failed: int) -> NoReturn:
        if not error.is_refusal:
            remedy = "what was answered is kept: run the same command when the server is back"
        elif self._has_answered:
            remedy = "what was answered is kept: run the same command when it answers again"
        else:
            remedy = "it answered none before: mend the settings or these prompts"
        if error.status == 403:
            remedy += f", or {self.endpoint.advice(403)}"
        raise EndpointError(
            f"{self.config.base_url} failed {num_failed} prompts one after another, the last with "
            f"{error}; {remedy}"
        )

    async def _draw(self, request: _Request, watch: Watch) -> None:
        """Asks until all samples of a request are there; servers may give fewer than asked for."""
        left = list(request.samples)
        question = request.owner.task.question
        is_chat = not isinstance(question.prompt, str)
        path = "chat/completions" if is_chat else "completions"
        while left:
            body = self._body(request, left)
            guess = (len(str(question.prompt)) // _BYTES_PER_TOKEN) + (
                len(left) * self.sampling.max_new_tokens
            )
            found, usage = await self.endpoint.ask(
                path,
                body,
                lambda answer: _choices(answer, is_chat),
                num_tokens=guess,
                most_bytes=self._most_bytes(len(left)),
            )
            self._has_answered = True
            counted = usage.get("completion_tokens")
            watch.tokens(counted or 0)
            request.owner.prompt_tokens = usage.get("prompt_tokens")
            for text, finish in found[: len(left)]:
                # What several choices used together is nobody's count.
                own = counted if len(found) == 1 else None
                request.owner.answers[left.pop(0)] = self._answer_of(text, finish, own)

    def _most_bytes(self, num_samples: int) -> int:
        """Far more than so many samples can take, however they are escaped."""
        most = num_samples * self.sampling.max_new_tokens
        return _MOST_BYTES + _MOST_BYTES_PER_TOKEN * most

    def _answer_of(self, text: str, finish: str, num_tokens: int | None) -> Answer:
        """Some servers ignore stop texts: the answer is cut here as well."""
        text = self.endpoint.of_answer(text)
        cut = cut_at_stop(text, self.stop)
        return Answer(text if cut is None else cut, finish if cut is None else "stop", num_tokens)

    def _body(self, request: _Request, left: Sequence[int]) -> dict[str, Any]:
        sampling, question = self.sampling, request.owner.task.question
        is_text = isinstance(question.prompt, str)
        asked = {"prompt": question.prompt} if is_text else {"messages": list(question.prompt)}
        body: dict[str, Any] = {
            "model": self.model,
            **asked,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.config.token_limit: sampling.max_new_tokens,
            "seed": (question.sample_key(left[0]) ^ sampling.seed) % _SEEDS,
        }
        if len(left) > 1:
            body["n"] = len(left)
        # vLLM and others know what a chat template may be given beside tools by this name.
        for_template = dict(question.template_kwargs)
        given = {"tools": for_template.pop("tools", None), "chat_template_kwargs": for_template}
        body |= {name: value for name, value in given.items() if value}
        if self.stop:
            body["stop"] = list(self.stop)
        # Not in OpenAI's protocol, though many servers know them: sent only where asked for.
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.min_p:
            body["min_p"] = sampling.min_p
        return body


def _choices(answer: Mapping[str, Any], is_chat: bool) -> tuple[list[tuple[str, str]], dict]:
    """Text and finish reason of each choice, and what the server counted.

    Raises ValueError or another error of reading where the answer is not whole.
    """
    found = []
    for choice in answer["choices"]:
        finish = choice["finish_reason"]
        text = choice["message"].get("content") if is_chat else choice["text"]
        if not isinstance(finish, str):
            raise ValueError(f"finish_reason is {finish!r}")
        if finish in _NOT_WHOLE:
            raise ValueError(f"finish_reason is {finish}: the answer is not whole")
        if text is None and finish != "stop":
            text = ""  # all of it went into something else: reasoning, a tool's call, a filter
        if not isinstance(text, str):
            raise ValueError(f"the text is {type(text).__name__}")
        found.append((text, finish))
    if not found:
        raise ValueError("no choices")
    usage = answer.get("usage")
    counts = {
        name: value
        for name, value in (usage.items() if isinstance(usage, dict) else ())
        if isinstance(value, int)
    }
    return found, counts
