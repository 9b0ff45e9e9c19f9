"""A server with OpenAI's protocol that fails on purpose: real HTTP on the loopback device.

Which request fails, and how, is drawn from a seed. A request that does not fail is answered with a
text that follows from model, prompt and seed, so that a test can tell whose answer it is.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "garbage", "half", "never", "malformed", "echo", "reset")
ADDRESS = "http://127.0.0.1:{port}/v1"


def expected_text(body: dict[str, Any], place: int = 0) -> str:
    """What an honest answer to a request says."""
    prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    return f"answer to <{prompt}> under {body['seed']}.{place}"


class FaultyServer(ThreadingHTTPServer):
    """Answers, or fails, request by request; keeps what it was asked and what it answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        *,
        rate: float = 0.0,
        faults: Sequence[str] = FAULTS,
        seed: int = 0,
        hang: float = 30.0,
        delay: float = 0.0,
        script: Sequence[str] = (),
        retry_after: str = "0",
        most_choices: int = 100,
        port: int = 0,
    ) -> None:
        """
        Args:
            rate: part of the requests that fail.
            hang: how long a request that is never answered is held [s], unless the server ends.
            delay: before every honest answer [s].
            script: what becomes of the first requests: a fault, a status (and words that its
                message begins with), a body under status 200, or "ok"; then the rate.
            most_choices: of one answer, whatever `n` says.
            port: 0 takes a free one.
        """
        super().__init__(("127.0.0.1", port), _Handler)
        self.rate, self.faults, self.hang, self.delay = rate, tuple(faults), hang, delay
        self.retry_after, self.most_choices = retry_after, most_choices
        self.asked: list[dict[str, Any]] = []
        """Bodies of all requests."""
        self.times: list[float] = []
        self.paths: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        """Authorization headers."""
        self.answered: Counter[str] = Counter()
        """Honest answers that were sent whole, by their text."""
        self.failed: Counter[str] = Counter()
        self.sent = 0
        """Bytes of answers without an end."""
        self.most_at_once = 0
        self._at_once = 0
        self._script = list(script)
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self.ending = threading.Event()

    @property
    def base_url(self) -> str:
        """As `endpoint.base_url`."""
        return ADDRESS.format(port=self.server_address[1])

    def draw(self, path: str, key: str | None, body: dict[str, Any]) -> str:
        """What becomes of a request."""
        with self._lock:
            self.asked.append(body)
            self.times.append(time.monotonic())
            self.paths[path] += 1
            self.keys.add(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            if self._script:
                drawn = self._script.pop(0)
            elif self._rng.random() < self.rate:
                drawn = self._rng.choice(self.faults)
            else:
                drawn = "ok"
            if drawn != "ok":
                self.failed[drawn] += 1
            return drawn

    def leave(self, text: Sequence[str] = ()) -> None:
        """A request is over; `text`: what was answered."""
        with self._lock:
            self._at_once -= 1
            self.answered.update(text)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization")
        drawn = self.server.draw(self.path, key, body)
        texts: list[str] = []
        try:
            texts = [] if drawn == "endless" else self._answer(drawn, key, body)
            if drawn == "endless":
                self._send_on_and_on()
        finally:
            self.server.leave(texts)

    def _answer(self, drawn: str, key: str | None, body: dict[str, Any]) -> list[str]:
        if drawn == "ok":
            time.sleep(self.server.delay)
            answer, texts = _answer(body, self.path, self.server.most_choices)
            self._send(200, json.dumps(answer).encode())
            return texts
        if drawn == "never":
            self.server.ending.wait(self.server.hang)
            self.close_connection = True
        elif drawn == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
        elif drawn == "half":
            content = json.dumps(_answer(body, self.path, 1)[0]).encode()
            self._head(200, len(content))
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif drawn == "garbage":
            self._send(200, b'{"choices": [{"mess\xff\x00 <html>')
        elif drawn == "malformed":
            self._send(
                200, b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'
            )
        elif drawn == "echo":
            said = f"Incorrect header: {key}"
            self._send(500, json.dumps({"error": {"message": said}}).encode())
        elif drawn == "answer key":
            answer, _ = _answer(body, self.path, 1)
            choice = answer["choices"][0]
            owner, name = (
                (choice["message"], "content") if "message" in choice else (choice, "text")
            )
            owner[name] = f"your key is {key}"
            self._send(200, json.dumps(answer).encode())
        elif drawn[:3].isdigit():
            status, _, words = drawn.partition(" ")
            said = f"{words or f'status {status} with'} {key}"
            self._send(int(status), json.dumps({"error": {"message": said}}).encode())
        else:
            self._send(200, drawn.encode())
        return []

    def _send_on_and_on(self) -> None:
        """Until nobody listens any more, or the server ends."""
        self._head(200, 10**12)
        while not self.server.ending.is_set():
            self.server.sent += self.wfile.write(b" " * 2**16)

    def _send(self, status: int, content: bytes) -> None:
        self._head(status, len(content))
        self.wfile.write(content)
        self.wfile.flush()

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _answer(body: dict[str, Any], path: str, most: int) -> tuple[dict[str, Any], list[str]]:
    number = min(body.get("n", 1), most)
    texts = [expected_text(body, place) for place in range(number)]
    is_chat = path.endswith("/chat/completions")
    choices = [
        {"index": place, "finish_reason": "stop"}
        | ({"message": {"role": "assistant", "content": text}} if is_chat else {"text": text})
        for place, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 5 * number, "total_tokens": 7 + 5 * number}
    return {"object": "answer", "choices": choices, "usage": usage}, texts


@contextmanager
def serving(**settings: Any) -> Iterator[FaultyServer]:
    """A server in a thread while the block runs; settings of FaultyServer."""
    server = FaultyServer(**settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
