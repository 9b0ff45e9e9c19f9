"""The models that `penchant score` can ask: reward models, and policies by their log-probabilities.

    logprob             sum of the log-probabilities of the response's scored tokens [nats]
    logprob_per_token   that by their number
    implicit_reward     beta * (log policy(response) - log reference(response))
Paper
    implicit reward: https://arxiv.org/abs/2305.18290, section 4
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from penchant import engine as engines
from penchant.commands._evaluate_run import RunFacts, run_facts
from penchant.data.making import Maker
from penchant.data.pairing import PairPlan
from penchant.data.plan import Planned
from penchant.data.rows import RowError, SetAside
from penchant.data.trees import TokenSettings
from penchant.engine.memory import halving
from penchant.engine.processes import ALONE
from penchant.errors import RecipeError
from penchant.evaluate.kind import kind_of
from penchant.evaluate.policy import response_totals
from penchant.models import load
from penchant.models.config import ModelSource
from penchant.recipe.selection import ScoreRecipe, ScoringModel
from penchant.reward.fitting import NO_LIMIT, Reading, Room, fit, most_tokens
from penchant.reward.score import Scorer, automatic_budget, only_texts
from penchant.train.policy import Placement, named_reference
from penchant.types import Comparison, TokenTree


@dataclass(frozen=True, kw_only=True)
class Against:
    """What an implicit reward is measured against, and its scale."""

    reference: ModelSource
    beta: float


@dataclass
class Lost:
    """Rows that a model cannot score, with their reasons."""

    set_aside: list[SetAside] = field(default_factory=list)


@final
@dataclass
class PolicyScorer:
    """A causal language model as a scorer; build it with `load_scorer`."""

    engine: engines.Engine
    tokenizer: Any
    room: Room
    token_budget: int
    per_token: bool = False
    chat_template: str | None = None
    reference: engines.Engine | None = None
    adapter_off: bool = False
    """Whether the reference is the policy without its adapter."""
    beta: float = 1.0
    report: Lost = field(default_factory=Lost)

    def trees(self, comparisons: Iterable[Comparison]) -> list[TokenTree]:
        """The usable rows as trees, in their order, uncut; the others are in `report`."""
        rows = list(comparisons)
        settings = TokenSettings(chat_template=self.chat_template, max_length=NO_LIMIT)
        planned = [Planned(only_texts(row), PairPlan((), None, ())) for row in rows]
        trees = []
        for row, made in zip(rows, Maker(self.tokenizer, settings).make(planned), strict=True):
            if made.tree is not None:
                trees.append(made.tree)
                continue
            assert made.error is not None, "a row becomes a tree or an error"
            line = row.row_id.rpartition(":")[2]
            number = int(line) if line.isdigit() else 0
            error = RowError(*made.error)
            self.report.set_aside.append(SetAside(row.source, number, error.reason, error.detail))
        return trees

    def score(self, trees: Sequence[TokenTree]) -> list[Tensor]:
        """Per tree a value per response [nats], float64; NaN where no token is scored."""
        parts = [(index, part) for index, tree in enumerate(trees) for part in fit(tree, self.room)]
        batch = [part.tree for _, part in parts]
        found = [torch.empty(len(tree.response_ids), dtype=torch.float64) for tree in trees]
        if not batch:
            return found
        total_R, length_R = self._totals(self.engine, batch)
        if self.reference is not None or self.adapter_off:
            total_R = self.beta * (total_R - self._of_reference(batch))
        if self.per_token:
            total_R = total_R / length_R
        total_R = torch.where(length_R > 0, total_R, torch.nan)
        sizes = [len(part.places) for _, part in parts]
        for (index, part), value_R in zip(parts, total_R.split(sizes), strict=True):
            found[index][list(part.places)] = value_R
        return found

    def _of_reference(self, trees: list[TokenTree]) -> Tensor:
        engine = self.reference or self.engine
        off = self.engine.model.disable_adapter() if self.adapter_off else nullcontext()
        with off:
            return self._totals(engine, trees)[0]

    def _totals(self, engine: engines.Engine, trees: list[TokenTree]) -> tuple[Tensor, Tensor]:
        smallest = min(tree.num_tokens for tree in trees)
        found, self.token_budget = halving(
            lambda budget: response_totals(engine, trees, budget),
            self.token_budget,
            ALONE,
            smallest=smallest,
        )
        return torch.from_numpy(found.total_R), torch.from_numpy(found.length_R)


def check_kinds(recipe: ScoreRecipe) -> None:
    """Raises RecipeError where a model is not of the kind that `by` asks."""
    for model in recipe.scorers:
        kind = kind_of(model.path, **_hub(model))
        if kind == "policy" and recipe.by == "reward":
            raise RecipeError(
                f"by=reward, but {model.path!r} is a language model without a score; give a reward "
                "model, or by=implicit_reward, logprob or logprob_per_token"
            )
        if kind == "reward" and recipe.by != "reward":
            raise RecipeError(
                f"by={recipe.by} needs a language model, but {model.path!r} is a reward model; "
                "leave `by` out, or name a policy"
            )


def against(recipe: ScoreRecipe, model: ScoringModel) -> Against | None:
    """Reference and beta of an implicit reward: the recipe's, else those of the model's run.

    Raises RecipeError where one of them is not known; ModelError where the reference does not fit.
    """
    if recipe.by != "implicit_reward":
        return None
    facts = run_facts(model.path)
    reference, beta = recipe.reference or facts.reference, recipe.beta or facts.beta
    for name, value, example in (("reference", reference, "DIR"), ("beta", beta, "0.1")):
        if value is None:
            raise RecipeError(
                f"by=implicit_reward: {model.path!r} does not say its {name} (it is no run folder "
                f"of an objective that has one); give {name}={example}"
            )
    assert reference is not None and beta is not None, "checked above"
    hub: dict[str, Any] = {
        "revision": reference.revision,
        "trust_remote_code": reference.trust_remote_code,
    }
    tokenizer = load.load_tokenizer(model.path, **_hub(model))
    load.check_fit(load.load_config(reference.path, **hub), tokenizer, reference.path)
    load.check_same_tokenizer(tokenizer, reference.path, **hub)
    return Against(reference=reference, beta=beta)


def load_scorer(
    recipe: ScoreRecipe, model: ScoringModel, device: str, beside: Against | None
) -> Scorer | PolicyScorer:
    """A model ready to score. Raises ModelError where it cannot be loaded.

    Args:
        beside: of an implicit reward, as `against` gave it.
    """
    data = recipe.data
    reading = Reading(
        chat_template=data.chat_template,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        truncate_prompt=data.truncate_prompt,
    )
    if recipe.by == "reward":
        return Scorer.load(
            model.path,
            dtype=model.dtype,
            device=device,
            token_budget=recipe.token_budget,
            reading=reading,
            **_hub(model),
        )
    return _policy(recipe, model, device, beside, reading)


def _policy(
    recipe: ScoreRecipe, model: ScoringModel, device: str, beside: Against | None, reading: Reading
) -> PolicyScorer:
    hub = _hub(model)
    tokenizer = load.load_tokenizer(model.path, **hub)
    config = load.load_config(model.path, **hub)
    load.check_fit(config, tokenizer, model.path)
    dtype = load.compute_dtype(model.path, model.dtype, **hub)
    place = Placement(torch.device(device), dtype, ALONE)
    source = ModelSource(path=model.path, dtype=model.dtype, **hub)
    engine = named_reference(source, place)
    assert engine is not None, "a source was given"
    room = room_of(config, tokenizer, reading, run_facts(model.path))
    load.check_length(config, room.max_length, model.path)
    adapter_off = beside is not None and _is_base(model.path, beside.reference)
    return PolicyScorer(
        engine=engine,
        tokenizer=tokenizer,
        room=room,
        token_budget=automatic_budget(device)
        if recipe.token_budget == "auto"
        else recipe.token_budget,
        per_token=recipe.by == "logprob_per_token",
        chat_template=reading.chat_template,
        reference=None
        if beside is None or adapter_off
        else named_reference(beside.reference, place),
        adapter_off=adapter_off,
        beta=1.0 if beside is None else beside.beta,
    )


def _is_base(path: str, reference: ModelSource) -> bool:
    """Whether a reference is the model that an adapter was added to, in the same numbers."""
    if not load.is_adapter(path) or reference.revision or reference.dtype != "auto":
        return False
    from penchant.models.adapters import base_of

    return Path(base_of(path)).resolve() == Path(reference.path).resolve()


def room_of(config: Any, tokenizer: Any, reading: Reading, facts: RunFacts) -> Room:
    """As in the model's run; of another model as much as it reads."""
    cuts = facts.cuts
    prompt = reading.max_prompt_length
    if prompt is None and reading.max_length in (None, cuts.get("max_length")):
        prompt = cuts.get("max_prompt_length")
    return Room(
        max_length=reading.max_length or cuts.get("max_length") or most_tokens(config, tokenizer),
        max_prompt_length=prompt,
        truncate_prompt=reading.truncate_prompt or cuts.get("truncate_prompt") or "keep_end",
        bos_id=tokenizer.bos_token_id,
    )


def _hub(model: ScoringModel) -> dict[str, Any]:
    return {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
