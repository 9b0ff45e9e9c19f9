"""What `penchant score` will take, before it starts: rows, responses, tokens, time.

Tokens are counted on rows spread over the data, all of them where they are few. The time is
reckoned from the models' sizes and the rate of a matrix product on this machine, as training's dry
run reckons where it cannot probe (`train/costs.py`): no weights are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from penchant.commands import _score_models as models
from penchant.commands._evaluate_run import reward_reading, run_facts
from penchant.data.carried import CarriedRows
from penchant.data.making import Maker
from penchant.data.pairing import PairPlan
from penchant.data.plan import Planned
from penchant.data.sizes import TreeSizes
from penchant.data.trees import TokenSettings
from penchant.evaluate.kind import is_encoder
from penchant.models import load
from penchant.models.config import ModelConfig, ModelSource
from penchant.recipe.selection import ScoreRecipe, ScoringModel
from penchant.reward.fitting import NO_LIMIT, Reading, Room, fit
from penchant.reward.score import only_texts
from penchant.train.costs import EFFICIENCY, OTHER_EFFICIENCY, ModelSize, Setting, matmul_rate
from penchant.types import Comparison

_SAMPLED = 256
"""Rows that are tokenised."""


def plan(
    recipe: ScoreRecipe, rows: CarriedRows, beside: Sequence[models.Against | None], device: str
) -> dict[str, Any]:
    """What there is to do and how long it will take; nothing is loaded or written."""
    places = [place for place, row in enumerate(rows) if row.comparison is not None]
    step = max(1, -(-len(places) // _SAMPLED))
    sampled = frozenset(places[::step])
    kept, num_rows, num_responses = [], 0, 0
    for place, row in enumerate(rows):
        num_rows += 1
        if row.comparison is not None:
            num_responses += len(row.comparison.responses)
            kept += [row.comparison] if place in sampled else []
    first = beside[0]
    return {
        "rows": num_rows,
        "rows_set_aside": num_rows - len(places),
        "responses": num_responses,
        "models": [f"{model.name}: weight {model.weight:g}" for model in recipe.scorers],
        "reference": None if first is None else first.reference.path,
        **_reckoned(recipe, beside, kept, len(places), torch.device(device)),
        "would_write": [recipe.output],
    }


def _reckoned(
    recipe: ScoreRecipe,
    beside: Sequence[models.Against | None],
    sample: Sequence[Comparison],
    num_used: int,
    device: torch.device,
) -> dict[str, Any]:
    """Tokens and seconds of all models, or the reason why they cannot be reckoned."""
    tokens = seconds = 0.0
    scale = num_used / max(1, len(sample))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        for model, against in zip(recipe.scorers, beside, strict=True):
            cost = _cost(recipe, model, sample)
            tokens += cost.tokens * scale
            seconds += cost.seconds(model, device) * scale / processes
            if against is not None:
                other = replace(cost, size=_size(against.reference))
                tokens += other.tokens * scale
                seconds += other.seconds(against.reference, device) * scale / processes
    except Exception as error:  # whatever a model's code does, a plan can be given without it
        said = (str(error).splitlines() or [""])[0]
        return {"estimated_time": f"not known: {type(error).__name__}: {said}"}
    how = "all rows" if len(sample) == num_used else f"{len(sample)} rows"
    return {
        "num_tokens": round(tokens),
        "estimated_seconds": float(f"{seconds:.2g}"),
        "estimated_by": f"the models' sizes and the lengths of {how}, within a factor of two for "
        "models that are not small; loading is not counted",
    }


@final
@dataclass(frozen=True)
class _Cost:
    """Forward passes of some rows through a model."""

    size: ModelSize
    sizes: TreeSizes
    """Of the rows as they are cut, every prompt once."""
    has_head: bool
    """Whether every token of a response is predicted, as a policy does."""

    @property
    def tokens(self) -> int:
        return int(self.sizes.num_tokens_N.sum())

    def seconds(self, model: ScoringModel | ModelSource, device: torch.device) -> float:
        """On one process."""
        dtype = load.compute_dtype(model.path, model.dtype, **_hub(model))
        setting = Setting(
            size=self.size, padded=False, dtype=dtype, checkpointing=False, optimizer="adamw"
        )
        scored = int((self.sizes.num_tokens_N - self.sizes.prompt_N).sum())
        reach = float(self.sizes.reach_N.sum())
        layers, head = setting.operations(self.tokens, reach, scored * self.has_head)
        rate = EFFICIENCY.get((device.type, dtype), OTHER_EFFICIENCY) * matmul_rate(device, dtype)
        return (layers + head) / rate


def _cost(recipe: ScoreRecipe, model: ScoringModel, sample: Sequence[Comparison]) -> _Cost:
    tokenizer = load.load_tokenizer(model.path, **_hub(model))
    settings = TokenSettings(chat_template=recipe.data.chat_template, max_length=NO_LIMIT)
    planned = [Planned(only_texts(row), PairPlan((), None, ())) for row in sample]
    trees = [made.tree for made in Maker(tokenizer, settings).make(planned)]
    room = _room(recipe, model, tokenizer)
    parts = [part.tree for tree in trees if tree is not None for part in fit(tree, room)]
    is_policy = recipe.by != "reward"
    return _Cost(_size(model, scores=not is_policy), TreeSizes.of(parts), is_policy)


def _room(recipe: ScoreRecipe, model: ScoringModel, tokenizer: Any) -> Room:
    data = recipe.data
    names = ("chat_template", "max_length", "max_prompt_length", "truncate_prompt")
    given = {name: getattr(data, name) for name in names}
    config = load.load_config(model.path, **_hub(model))
    if recipe.by != "reward":
        return models.room_of(config, tokenizer, Reading(**given), run_facts(model.path))
    if is_encoder(config, trust_remote_code=model.trust_remote_code):
        raise ValueError("it is an encoder, whose rows are padded")
    return reward_reading(model.path, config, tokenizer, given, True)[1]


def _size(model: ScoringModel | ModelSource, *, scores: bool = False) -> ModelSize:
    config = load.load_config(model.path, **_hub(model))
    kind = ModelConfig(path=model.path, trust_remote_code=model.trust_remote_code)
    return ModelSize.of(config, kind, scores=scores)


def _hub(model: ScoringModel | ModelSource) -> dict[str, Any]:
    return {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
