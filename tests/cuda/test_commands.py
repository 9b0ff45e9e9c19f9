"""Commands whole on a CUDA device: the same losses, texts and scores as on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

import penchant
from tests.commands.reward_world import reward_recipe, write_tasks
from tests.commands.scoring import read_rows, write_scoring_world
from tests.commands.world import read_metrics, recipe, write_rows, write_world
from tests.cuda.device import NEEDS_CUDA

pytestmark = NEEDS_CUDA
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "dpo"},
    {"name": "mmpo", "bt_beta": 0.5},
    {"name": "dpo-gamma"},
    {"name": "slic-dpo"},
    {"name": "dpo-bmc"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("cuda"))


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run) if "loss" in row]


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    start_anew()


def start_anew() -> None:
    """Accelerate keeps one device per process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def train(world: Path, place: Path, device: str, **changes: Any) -> list[float]:
    start_anew()
    changes = {"training__device": device, "output_dir": str(place)} | changes
    penchant.run("train", None, recipe(world, **changes))
    return losses(place)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: one["name"])
def test_training_in_float32_takes_the_same_steps(
    world: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    changes = {"objective": objective, "model__dtype": "float32"}
    found = train(world, tmp_path / "cuda", "cuda", **changes)
    expected = train(world, tmp_path / "cpu", "cpu", **changes)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__adapter__r": 4},
        {"model__gradient_checkpointing": True},
        {"training__optimizer": "adafactor"},
        {"training__compile": True},
        {"training__compile": True, "model__adapter__r": 4},
    ],
    ids=["whole", "lora", "checkpointing", "adafactor", "compiled", "compiled lora"],
)
def test_training_in_bfloat16_is_near(world: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = train(world, tmp_path / "cuda", "cuda", model__dtype="bfloat16", **changes)
    expected = train(world, tmp_path / "cpu", "cpu", model__dtype="float32", **changes)
    assert len(found) == 3
    assert found == pytest.approx(expected, abs=0.05)


def test_a_run_is_verified(world: Path, tmp_path: Path) -> None:
    changes = {"model__dtype": "bfloat16", "training__save_steps": 1}
    train(world, tmp_path / "run", "cuda", **changes)
    assert penchant.run("verify", None, {"run": str(tmp_path / "run")})


def test_a_reward_model_learns_what_it_learns_on_a_processor(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    found = {}
    for device in ("cuda", "cpu"):
        start_anew()
        given = reward_recipe(tmp_path, training__device=device, model__dtype="float32")
        penchant.run("reward", None, given | {"output_dir": str(tmp_path / device)})
        found[device] = losses(tmp_path / device)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3)


def test_texts_do_not_depend_on_the_batch(world: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": f"{n}: say{' so' * (n % 7)}"} for n in range(20)]
    write_rows(tmp_path / "prompts.jsonl", prompts)
    texts = []
    for budget in (200, 1000, 100_000):
        place = tmp_path / f"{budget}.jsonl"
        given = {"model": str(world / "model"), "data": str(tmp_path / "prompts.jsonl")}
        given |= {"output": str(place), "n": 3, "max_tokens": 24, "seed": 1, "device": "cuda"}
        penchant.run("generate", None, given | {"token_budget": budget, "model.dtype": "float32"})
        texts.append([row["responses"] for row in read_rows(place)])
    assert texts[0] == texts[1] == texts[2]


def test_scores_are_those_of_the_processor(tmp_path: Path) -> None:
    world = write_scoring_world(tmp_path)
    found = {}
    for device in ("cuda", "cpu"):
        place = tmp_path / f"{device}.jsonl"
        model = {"path": str(world / "rm"), "dtype": "float32"}
        given = {"models": [model], "data": str(world / "candidates.jsonl")}
        given |= {"output": str(place), "device": device}
        penchant.run("score", None, given)
        found[device] = [value for row in read_rows(place) for value in row["scores"]]
    assert found["cuda"] == pytest.approx(found["cpu"], abs=1e-4)
