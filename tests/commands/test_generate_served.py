"""A real server with OpenAI's protocol on this machine, `transformers serve`, end to end.

Slow, and it needs packages that the project does not: install them into a folder of their own and
name it,

    pip install --target DIR "fastapi" "uvicorn" "openai"
    PENCHANT_SERVING=DIR python -m pytest -m slow tests/commands/test_generate_served.py
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.errors import EndpointError
from tests.commands.generate_world import rows_of

pytestmark = pytest.mark.slow
_PATIENCE = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "mini"
    sizes = {"num_sft": 8, "num_pairs": 8, "num_scored": 8, "num_held_out": 12}
    penchant.run("miniature", None, {"output_dir": str(folder), **sizes})
    return folder


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    packages = os.environ.get("PENCHANT_SERVING")
    if not packages:
        pytest.skip("PENCHANT_SERVING names no folder with fastapi, uvicorn and openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(world / "model")]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    log = (world.parent / "server.log").open("wb")
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _answers(port):
            said = (world.parent / "server.log").read_text()[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def test_greedy_answers_of_the_server_are_those_of_the_model(world: Path, address: str) -> None:
    """Conversations and plain text, both back ends, the same model: the same texts."""
    given = {
        "model": str(world / "model"),
        "data": {"train": {"path": str(world / "prompts.jsonl")}},
        "temperature": 0,
        "max_tokens": 24,
    }
    for name, more in (("text", {}), ("user", {"prompt_as": "user"})):
        outputs = {}
        for backend, own in (
            ("transformers", {"device": "cpu"}),
            ("openai", {"endpoint": {"base_url": address, "concurrency": 2}}),
        ):
            output = world / f"{name}-{backend}.jsonl"
            found = penchant.run(
                "generate",
                None,
                {**given, **more, "backend": backend, **own, "output": str(output)},
            )
            assert found["prompts"] == 12 and found["failed"] == 0
            outputs[backend] = rows_of(output)
        ours, theirs = outputs["transformers"], outputs["openai"]
        # The server's words are kept as they come. Ours are without the white space that the chat
        # template writes before an answer.
        served = [[_without_lead(row, text) for text in row["responses"]] for row in theirs]
        assert [row["responses"] for row in ours] == served
        assert [row["prompt"] for row in ours] == [row["prompt"] for row in theirs]
        assert theirs[0]["generation"]["completion_tokens"][0] > 0
        assert any(text for row in theirs for text in row["responses"])


def test_a_model_that_the_server_has_not_is_one_line(world: Path, address: str) -> None:
    given = {"model": "no/such-model", "data": str(world / "prompts.jsonl"), "backend": "openai"}
    given |= {"output": str(world / "none.jsonl"), "endpoint.base_url": address}
    given |= {"endpoint.max_retries": 0, "max_tokens": 4}
    with pytest.raises(EndpointError) as caught:
        penchant.run("generate", None, given)
    assert "\n" not in str(caught.value)


def _without_lead(row: dict[str, Any], text: str) -> str:
    return text if isinstance(row["prompt"], str) else text.removeprefix(" ")
