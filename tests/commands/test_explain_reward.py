"""`penchant explain` of a reward recipe: its numbers are those of the reward model's training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant import data
from penchant.models.config import ModelConfig
from penchant.models.load import load_causal_lm, load_tokenizer
from penchant.models.padding import set_padding
from penchant.models.reward_head import load_reward_model
from penchant.models.save import save_model
from penchant.recipe import load_recipe
from tests.commands.reward_world import reward_recipe, write_tasks
from tests.commands.world import pair
from tests.tiny import naive_logps, tiny_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tasks, and `rm`: a reward model on the tiny language model."""
    folder = write_tasks(tmp_path_factory.mktemp("world"))
    model, tokenizer = started(folder, 3), tiny_tokenizer()
    set_padding(model, tokenizer)
    save_model(model, tokenizer, folder / "rm")
    return folder


def started(folder: Path, seed: int) -> Any:
    config = ModelConfig(path=str(folder / "model"))
    return load_reward_model(config, torch.float32, seed=seed).eval()


def explain(world: Path, row: int | str, *names: str, **changes: Any) -> dict[str, Any]:
    return penchant.run("explain", None, reward_recipe(world, *names, **changes) | {"row": row})


def tree_of(world: Path, name: str, row: int) -> Any:
    loaded = data.load(world / f"{name}.jsonl")
    tokenizer = load_tokenizer(str(world / "model"))
    trees, _ = data.build_trees(loaded, tokenizer, max_length=64, pairing="all", ties="drop")
    return next(tree for tree in trees if tree.row_id == f"{name}:{row}")


@torch.no_grad()
def naive_scores(model: Any, tree: Any) -> list[float]:
    rows = [torch.tensor([[*tree.prompt_ids, *ids]]) for ids in tree.response_ids]
    return [float(model.score(model.model(row).last_hidden_state[0, -1])) for row in rows]


def test_scores_and_losses_are_those_of_the_reward_model(world: Path) -> None:
    objective = {"name": "bradley-terry", "centring": 0.1}
    found = explain(world, "scored:2", model=str(world / "rm"), objective=objective)
    tree = tree_of(world, "scored", 2)
    scores = naive_scores(started(world, 3), tree)
    assert found["scores"] == pytest.approx(scores, abs=1e-5)
    assert found["pairs"] == list(map(list, tree.pairs_P2)) and len(found["pairs"]) == 2
    for place, (c, r) in enumerate(tree.pairs_P2):
        loss = math.log1p(math.exp(scores[r] - scores[c])) + 0.1 * (scores[c] + scores[r]) ** 2
        assert found["loss"][place] == pytest.approx(loss, abs=1e-5)
        assert found["chosen_reward"][place] == pytest.approx(scores[c], abs=1e-5)
    assert found["policy"] is None and found["reference"] is None and not found["is_head_new"]


def test_a_recipe_that_names_no_objective_is_that_of_its_command(
    world: Path, tmp_path: Path, capsys: Any
) -> None:
    page = tmp_path / "page.html"
    found = explain(world, "rude:1", task_weights="more", pooling="last", output=str(page))
    scores = naive_scores(started(world, 42), tree_of(world, "rude", 1))
    assert found["scores"] == pytest.approx(scores, abs=1e-5)
    assert found["loss"] == [pytest.approx(math.log1p(math.exp(scores[1] - scores[0])), abs=1e-5)]
    shown = capsys.readouterr().out.replace("\u2212", "-")
    assert "! The head that scores is new" in shown and f"Reward: {found['scores'][0]:.4f}" in shown
    text = page.read_text(encoding="utf-8")
    assert "Reward model" in text and "Reference" not in text


def test_soft_labels_and_the_language_model_term(world: Path) -> None:
    soft = {"name": "bradley-terry-soft", "bt_beta": 0.5, "lm_weight": 0.2}
    found = explain(world, "pairs:3", "pairs", objective=soft)
    gap = pair(2)["score_chosen"] - pair(2)["score_rejected"]
    assert found["soft_label"] == [pytest.approx(1 / (1 + math.exp(-0.5 * gap)))]
    tree = tree_of(world, "pairs", 3)
    with torch.no_grad():
        expected = naive_logps(load_causal_lm(str(world / "model")).eval(), tree, 0)
    assert found["policy"][0] == pytest.approx(expected.tolist(), abs=1e-4)
    scores = naive_scores(started(world, 42), tree)
    p, margin = found["soft_label"][0], scores[0] - scores[1]
    loss = p * math.log1p(math.exp(-margin)) + (1 - p) * math.log1p(math.exp(margin))
    loss -= 0.2 * float(expected.mean())
    assert found["loss"] == [pytest.approx(loss, abs=1e-4)]


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("more_pythia_1b4", "bradley-terry"),
        ("multitask_pythia_1b4", "bradley-terry"),
        ("mmpo_rm_gemma_2b", "bradley-terry-soft"),
    ],
)
def test_the_shipped_reward_recipes_are_taken(name: str, objective: str) -> None:
    recipe: Any = load_recipe("explain", RECIPES / f"{name}.yaml", {"row": 1})
    assert recipe.objective["name"] == objective
