"""What a reward model and its objective say of one tree: by the same functions as training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from penchant.commands._explain_measure import Measured, job_of, labels_of, lists, placement
from penchant.errors import ModelError
from penchant.evaluate.kind import kind_of
from penchant.recipe.reading import ExplainRecipe
from penchant.train import pairs, ranking, reward_model
from penchant.train.policy import hub_keywords
from penchant.train.ranking import StepCounts
from penchant.train.reward_tasks import Tasks, task_name
from penchant.types import TokenTree

_CUTS = ("max_length", "max_prompt_length", "truncate_prompt")


def measure_rewards(
    recipe: ExplainRecipe, objective: Any, tokenizer: Any, tree: TokenTree
) -> Measured:
    """Loads the model as a training does, and evaluates the tree before any update.

    Raises ModelError where no reward model can be made of it, or it cannot read the tree.
    """
    place = placement(recipe, tokenizer, tree)
    tasks = Tasks(
        names=(task_name(tree),),
        pooling=recipe.pooling,
        lengths={name: getattr(recipe.data, name) for name in _CUTS},
    )
    job = replace(job_of(recipe, objective, tokenizer, tree), tasks=tasks)
    try:
        model = reward_model.build(job, place.dtype)
    except OSError as error:
        raise ModelError(str(error)) from error
    prepared = place.prepare(model)
    with torch.no_grad():
        model.eval()
        found = prepared.rewards([tree], with_logps=reward_model.needs_language_head(job))
        counts = StepCounts.count([tree], lambda _: 0, 1)
        output = ranking.rank(objective, [tree], found.scores_R, found.logps, counts).output
    return Measured(
        policy=None if found.logps is None else lists(found.logps),
        loss=output.loss_P.tolist(),
        chosen_reward=output.chosen_reward_P.tolist(),
        rejected_reward=output.rejected_reward_P.tolist(),
        soft_label=labels_of(objective, pairs.scores([tree], objective.uses)),
        scores=found.scores_R.tolist(),
        is_head_new=kind_of(recipe.model.path, **hub_keywords(recipe.model)) == "policy",
    )
