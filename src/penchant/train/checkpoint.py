"""Checkpoints: Hugging Face folders plus what a run needs to go on where it stopped.

Written under a temporary name and renamed, so that a folder named `checkpoint-N` is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from penchant.errors import MissingFileError

STATE_FILE = "trainer_state.json"


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    """Updates done."""
    num_tokens: int = 0
    """Tokens of the trees trained on, each prompt counted once per row."""
    best_step: int | None = None
    best_loss: float | None = None
    """The lowest eval_loss, and the step it was measured at."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    *,
    save_weights: Callable[[Path], None],
    optimizer: Any,
    scheduler: Any,
) -> Path:
    """Writes `checkpoint-<step>` into a run folder and returns its path."""
    final = folder / f"checkpoint-{progress.step}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_weights(temporary)
    torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
    torch.save(scheduler.state_dict(), temporary / "scheduler.pt")
    torch.save(_random_state(), temporary / "rng_state.pth")
    (temporary / STATE_FILE).write_text(json.dumps(asdict(progress), indent=2))
    shutil.rmtree(final, ignore_errors=True)
    os.rename(temporary, final)
    return final


def load_state(checkpoint: Path, *, optimizer: Any, scheduler: Any) -> Progress:
    """Brings back optimiser, schedule and random states; the weights are loaded by the caller."""
    optimizer.load_state_dict(_load(checkpoint / "optimizer.pt"))
    scheduler.load_state_dict(_load(checkpoint / "scheduler.pt"))
    _set_random_state(_load(checkpoint / "rng_state.pth"))
    return read_progress(checkpoint)


def read_progress(checkpoint: Path) -> Progress:
    """How far the run had come when the checkpoint was written."""
    return Progress(**json.loads((checkpoint / STATE_FILE).read_text()))


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint to go on from.

    Args:
        resume: "auto" (the newest in the run folder, if any), "never", or a checkpoint's folder.
    Raises:
        MissingFileError: the folder that was named holds no checkpoint.
    """
    if resume == "never":
        return None
    if resume != "auto":
        if not (Path(resume) / STATE_FILE).is_file():
            raise MissingFileError(
                f"training.resume={resume!r} is not a checkpoint; allowed: auto | never | the "
                "checkpoint-N folder of a run"
            )
        return Path(resume)
    return max(checkpoints(folder), key=_step, default=None)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run folder."""
    return [path for path in folder.glob("checkpoint-*") if (path / STATE_FILE).is_file()]


def prune(folder: Path, limit: int | None, *, keep: int | None = None) -> None:
    """Removes the oldest checkpoints beyond the limit; step `keep` stays and does not count."""
    if limit is None:
        return
    found = sorted((p for p in checkpoints(folder) if _step(p) != keep), key=_step)
    for path in found[: max(0, len(found) - limit)]:
        shutil.rmtree(path)


def load_weights(model: Any, checkpoint: Path) -> None:
    """Puts a checkpoint's weights into a model of the same kind, in place."""
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
        return
    stored = type(model).from_pretrained(checkpoint, dtype=next(model.parameters()).dtype)
    model.load_state_dict(stored.state_dict())


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
