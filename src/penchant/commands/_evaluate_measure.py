"""Runs a reward model, or a policy and its reference, over preference sets.

What a reference says is kept in the reference store, as in training: rows that are there, from a
training or from another evaluation, are read, and the others are computed once and stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penchant import objectives
from penchant.commands.evaluate import Ready
from penchant.compare.stats import mean_interval, win_rate
from penchant.data.store import longest_row
from penchant.engine.processes import ALONE
from penchant.engine.reference_store import ReferenceStore
from penchant.errors import ModelError, OutOfMemoryError, RecipeError
from penchant.evaluate.measures import Interval, Intervals
from penchant.evaluate.policy import ResponseTotals, response_totals
from penchant.evaluate.preferences import Judged, judged_by_policy, judged_by_scores
from penchant.evaluate.sets import PreferenceSet
from penchant.models import load
from penchant.models.config import ModelConfig, ModelSource
from penchant.recipe.reading import EvaluateRecipe
from penchant.reward.score import Scorer
from penchant.train import reference as references
from penchant.train.config import TrainingConfig
from penchant.train.device import pick_device
from penchant.train.fit import Job
from penchant.train.policy import Placement, hub_keywords, named_reference
from penchant.train.progress import ProgressLine
from penchant.types import TokenTree

TOKEN_BUDGET = {"cpu": 8192, "cuda": 32_768, "hpu": 32_768}
"""Tokens that run together without gradients, by device."""
_ROWS = 1024
"""Rows that are scored, or read from the store, at a time."""


def judge(
    recipe: EvaluateRecipe, ready: Ready, reference: ModelSource | None, beta: float | None
) -> tuple[list[Judged], dict[str, Any]]:
    """Every set with what the model says of its pairs, and how that was computed."""
    device, sets = _device(recipe.device), ready.sets
    budget = recipe.token_budget or TOKEN_BUDGET[device]
    dtype = load.compute_dtype(recipe.model.path, recipe.model.dtype, **hub_keywords(recipe.model))
    how: dict[str, Any] = {
        "reference": None if reference is None else reference.path,
        "dtype": str(dtype).removeprefix("torch."),
        "max_length": sets[0].report.max_length,
        "reference_rows_computed": 0,
        "reference_rows_reused": 0,
    }
    if ready.reading is not None:
        scorer = Scorer.load(
            recipe.model.path,
            dtype=recipe.model.dtype,
            device=device,
            token_budget=budget,
            reading=ready.reading,
            **hub_keywords(recipe.model),
        )
        return _by_scores(scorer, sets), how
    place = Placement(torch.device(device), dtype, ALONE)
    other: list[ResponseTotals] | list[None] = [None] * len(sets)
    if reference is not None:
        job = _reference_job(recipe, reference, sets)
        other, counts = _reference_totals(job, sets, place, budget)
        how |= counts
    # The same model computed twice would differ by the order of sums: no tie would be one.
    policy = [one for one in other if one is not None] if recipe.model == reference else []
    policy = policy or _totals(recipe.model, sets, place, budget)
    judged = [judged_by_policy(*one, beta) for one in zip(sets, policy, other, strict=True)]
    return judged, how


def intervals(seed: int) -> Intervals:
    """95 % intervals by `penchant.compare.stats`: a bootstrap over prompts.

    Where all prompts agree a bootstrap shows no doubt at all; a share then gets Wilson's interval.
    """

    def mean(value_N: NDArray[Any]) -> Interval | None:
        return mean_interval(value_N, seed).interval if len(value_N) > 1 else None

    def share(value_N: NDArray[Any]) -> Interval | None:
        if np.ptp(value_N) > 1e-12 or value_N[0] not in (0.0, 0.5, 1.0):
            return mean(value_N)
        return win_rate(value_N, np.full(len(value_N), 0.5)).interval

    return Intervals(share=share, mean=mean)


def _by_scores(scorer: Scorer, sets: Sequence[PreferenceSet]) -> list[Judged]:
    """Scores of all sets' responses, some rows at a time."""
    judged = []
    with ProgressLine("scores", sum(len(one.trees) for one in sets), "row") as line:
        for one in sets:
            scores: list[list[float]] = []
            for start in range(0, len(one.trees), _ROWS):
                part = one.trees[start : start + _ROWS]
                scores += [score_R.tolist() for score_R in scorer.score(part)]
                line.advance(len(part))
            judged.append(judged_by_scores(one, scores))
    return judged


def _totals(
    source: ModelSource, sets: Sequence[PreferenceSet], place: Placement, budget: int
) -> list[ResponseTotals]:
    """The policy's log-probabilities of all sets' responses; it is given up afterwards."""
    engine = named_reference(source, place)
    assert engine is not None, "a source is given"
    with ProgressLine("policy", sum(len(one.trees) for one in sets), "row") as line:
        return [response_totals(engine, one.trees, budget, line.advance) for one in sets]


def _reference_job(
    recipe: EvaluateRecipe, reference: ModelSource, sets: Sequence[PreferenceSet]
) -> Job:
    """A training against this reference, by which it is stored as training's; it does not run.

    Raises ModelError where there is no such model, or it cannot read the policy's tokens.
    """
    tokenizer = load.load_tokenizer(recipe.model.path, **hub_keywords(recipe.model))
    try:
        config = load.load_config(reference.path, **hub_keywords(reference))
        load.check_fit(config, tokenizer, reference.path)
        load.check_same_tokenizer(tokenizer, reference.path, **hub_keywords(reference))
        load.check_length(config, max(longest_row(one.trees) for one in sets), reference.path)
    except ModelError as error:
        if recipe.reference is not None:
            raise
        raise ModelError(f"{error} (the reference that the model's folder names; give another "
                         "one with reference=DIR)") from error  # fmt: skip
    return Job(
        model=ModelConfig(**recipe.model.model_dump()),
        reference=reference,
        objective=objectives.load("dpo", beta=1.0),  # it needs a reference, and no more
        tokenizer=tokenizer,
        train_trees=(),
        eval_trees=(),
        training=TrainingConfig(),
        folder=Path(recipe.output_dir),
        recipe_text="",
        data_report={},
    )


def _reference_totals(
    job: Job, sets: Sequence[PreferenceSet], place: Placement, budget: int
) -> tuple[list[ResponseTotals], dict[str, int]]:
    """The reference's log-probabilities, stored or computed, and how many rows were which.

    It is loaded for the first set of which a row is lacking, and given up afterwards.
    """
    read_from, engine = references.origin(job), None
    totals, computed, reused = [], 0, 0
    for one in sets:
        here, store = replace(job, train_trees=one.trees), None
        if engine is None:
            engine, store = references.load(here, read_from, place)
        if store is None:
            assert engine is not None, "a reference is named"
            try:
                store = references.fill(here, read_from, engine, budget)
            except OutOfMemoryError as error:
                raise OutOfMemoryError(
                    "out of memory with one row of the reference at a time; lower data.max_length"
                ) from error
        totals.append(_stored_totals(store, one.trees))
        computed, reused = computed + store.rows_computed, reused + store.rows_reused
    return totals, {"reference_rows_computed": computed, "reference_rows_reused": reused}


def _stored_totals(store: ReferenceStore, trees: Sequence[TokenTree]) -> ResponseTotals:
    """Sums over the scored tokens of every response, some rows at a time."""
    total: list[float] = []
    length: list[int] = []
    for start in range(0, len(trees), _ROWS):
        logps = store.logps(trees[start : start + _ROWS], torch.device("cpu"))
        total += [one.double().sum().item() for one in logps.per_response()]
        length += logps.lengths_R.tolist()
    return ResponseTotals(np.array(total, np.float64), np.array(length, np.int64))


def _device(asked: str) -> str:
    try:
        return pick_device(asked)
    except RecipeError as error:
        raise RecipeError(str(error).replace("training.device", "device")) from None
