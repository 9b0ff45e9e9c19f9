"""A folder with a tiny model and a few rows, for running commands whole."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from penchant.models.save import save_model
from tests.tiny import tiny_model, tiny_tokenizer

COLOURS = ["red", "blue", "green", "black", "white", "amber", "ochre", "teal"]


def write_world(folder: Path, num_rows: int = 24) -> Path:
    """`model`, `pairs.jsonl`, `eval.jsonl` and `chats.jsonl`; chosen says the colour."""
    save_model(tiny_model(), tiny_tokenizer(), folder / "model")
    write_rows(folder / "pairs.jsonl", [pair(n) for n in range(num_rows)])
    write_rows(folder / "eval.jsonl", [pair(n) for n in range(100, 106)])
    write_rows(folder / "chats.jsonl", [chat(n) for n in range(num_rows)])
    return folder


def linked(made: Path, folder: Path, *, without: Collection[str] = ()) -> Path:
    """Another world with the same content, so that what is written there stays there."""
    for entry in made.iterdir():
        if entry.name not in without:
            (folder / entry.name).symlink_to(entry)
    return folder


def pair(n: int) -> dict[str, Any]:
    colour = COLOURS[n % len(COLOURS)]
    return {
        "prompt": [{"role": "user", "content": f"{n}: say {colour}"}],
        "chosen": [{"role": "assistant", "content": colour}],
        "rejected": [{"role": "assistant", "content": "no" + "!" * (n % 3)}],
        "score_chosen": 6.0 + n % 4,
        "score_rejected": 5.0 - n % 3,
    }


def chat(n: int) -> dict[str, Any]:
    row = pair(n)
    return {"messages": [*row["prompt"], *row["chosen"]]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_bits(one: Path, two: Path) -> bool:
    """Whether two runs have the same weights and metrics."""
    files = ("model.safetensors", "metrics.jsonl")
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Overrides of a short run in the world; dotted keys, the last one wins."""
    return {
        "model": str(folder / "model"),
        "data": str(folder / "pairs.jsonl"),
        "data.max_length": 64,
        "training.batch_size": 8,
        "training.learning_rate": 1e-3,
        "training.device": "cpu",
        "output_dir": str(folder / "run"),
    } | {key.replace("__", "."): value for key, value in changes.items()}


def one_bit(world: Path) -> None:
    """Changes one weight of the world's model by the least that there is."""
    path = world / "model" / "model.safetensors"
    weights = load_file(path)
    row = weights["model.embed_tokens.weight"][100]  # none that the store samples in memory
    row[5] = torch.nextafter(row[5], torch.tensor(1.0))
    save_file(weights, path, {"format": "pt"})
