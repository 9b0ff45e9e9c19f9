"""The second half of the demo (`full=true`): reward models in conflict, best-of-n, fine-tuning.

    three conflicting sets -> a reward model, all pairs alike (multitask) and weighted (more)
    noisy overall pairs    -> a reward model that selects
    SFT generates 16 answers per prompt -> scores -> the best of 16 -> SFT on those

Every step is a command of its own, so that each can be repeated from the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.commands import run as run_command
from penchant.commands._demo_measure import read_rows, write_whole
from penchant.commands._demo_plan import MAX_NEW_TOKENS, START, TUNED, Place
from penchant.miniature.folder import AXES
from penchant.miniature.rewards import gold_reward
from penchant.recipe import DemoRecipe

WEIGHTED = {"reward-multitask": "uniform", "reward-more": "more"}
"""Runs on the conflicting sets, and how each weights its tasks."""
SELECTOR = "reward-overall"
NUM_TUNED_PROMPTS = 512
_FILES = {"train": "train_prompts.jsonl", "held_out": "prompts.jsonl"}


def candidates(recipe: DemoRecipe) -> int:
    """How many answers there are to choose from."""
    return 4 if recipe.quick else 16


def evaluation(place: Place, name: str) -> Path:
    """What a reward model is worth on the held-out conflicting sets."""
    return place.folder / "evaluations" / name


def scored(place: Place, split: str) -> Path:
    """Candidates with the reward model's scores and the gold rewards."""
    return place.folder / "candidates" / f"{split}.scored.jsonl"


def chosen(place: Place, split: str) -> Path:
    """The candidates that the reward model chose."""
    return place.folder / "candidates" / f"{split}.best.jsonl"


def curve(place: Place) -> Path:
    """Best-of-n on held-out prompts, as `penchant select` found it."""
    return place.folder / "candidates" / "curve.json"


def make(recipe: DemoRecipe, place: Place, name: str) -> None:
    """One step, unless its result is there already."""
    if name in WEIGHTED:
        _weighted(recipe, place, name)
    elif name == SELECTOR:
        sets = {"data.train": _file(place, "pairs"), "data.eval": _file(place, "eval_pairs")}
        _reward(recipe, place, name, sets)
    elif name == "candidates":
        for split in _FILES:
            _candidates(recipe, place, split)
    else:
        _fine_tune(recipe, place)


def _weighted(recipe: DemoRecipe, place: Place, name: str) -> None:
    sets = {
        "data.train": [_file(place, f"{axis}_pairs") for axis in AXES],
        "data.eval": [_file(place, f"{axis}_eval_pairs") for axis in AXES],
        "task_weights": WEIGHTED[name],
    }
    _reward(recipe, place, name, sets)
    if not (evaluation(place, name) / "evaluation.json").is_file():
        found = {
            "model": str(place.run(name)),
            "data": sets["data.eval"],
            "output_dir": str(evaluation(place, name)),
        }
        run_command("evaluate", None, found)


def _reward(recipe: DemoRecipe, place: Place, name: str, sets: Mapping[str, Any]) -> None:
    if (place.run(name) / "summary.json").is_file():
        return
    quick = {"training.max_steps": 3, "training.batch_size": 12} if recipe.quick else {}
    settings = {
        "model": str(place.run(START)),
        "output_dir": str(place.run(name)),
        "training.seed": place.seed,
        **sets,
        **quick,
    }
    # The miniature's recipe has the learning rate and the sizes; its task_weights is `more`.
    run_command("reward", place.world / "reward.yaml", {"task_weights": "uniform"} | settings)


def _candidates(recipe: DemoRecipe, place: Place, split: str) -> None:
    """Generates, scores by reward model and by gold, and chooses."""
    if chosen(place, split).is_file():
        return
    folder = scored(place, split).parent
    folder.mkdir(parents=True, exist_ok=True)
    generated, by_model = folder / f"{split}.jsonl", folder / f"{split}.rewards.jsonl"
    run_command("generate", None, {
        "model": str(place.run(START)),
        "data": {"train": [{"path": str(place.world / _FILES[split]), "rows": NUM_TUNED_PROMPTS}]},
        "output": str(generated),
        "n": candidates(recipe),
        "max_tokens": MAX_NEW_TOKENS,
        "seed": place.seed + (split == "train"),
    })  # fmt: skip
    found = {"model": str(place.run(SELECTOR)), "data": str(generated), "output": str(by_model)}
    run_command("score", None, found)
    gold = [[gold_reward(row, text) for text in row["responses"]] for row in read_rows(generated)]
    rows = [row | {"gold": one} for row, one in zip(read_rows(by_model), gold, strict=True)]
    write_whole(scored(place, split), "".join(json.dumps(row) + "\n" for row in rows))
    summary = run_command("select", None, {
        "data": str(scored(place, split)),
        "output": str(chosen(place, split)),
        "gold": "gold",
        "page": str(folder / f"{split}.html"),
    })  # fmt: skip
    if split == "held_out":
        write_whole(curve(place), json.dumps(summary, indent=1))


def _fine_tune(recipe: DemoRecipe, place: Place) -> None:
    if (place.run(TUNED) / "summary.json").is_file():
        return
    quick = {"training.max_steps": 3, "training.batch_size": 8} if recipe.quick else {}
    run_command("sft", place.world / "sft.yaml", {
        "model.path": str(place.run(START)),
        "data.train": str(chosen(place, "train")),
        "training.learning_rate": 5e-4,
        "training.seed": place.seed,
        "training.save_total_limit": 1,
        "output_dir": str(place.run(TUNED)),
        **quick,
    })  # fmt: skip


def _file(place: Place, name: str) -> str:
    return str(place.world / f"{name}.jsonl")
