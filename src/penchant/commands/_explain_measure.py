"""What policy, reference and objective say of one tree: by the same functions as training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penchant.engine.processes import ALONE
from penchant.errors import ModelError
from penchant.models import load
from penchant.recipe.reading import ExplainRecipe
from penchant.train import fit, pairs, token_kl
from penchant.train import reference as reference_pass
from penchant.train.device import pick_device
from penchant.train.policy import Placement, build_model, hub_keywords, named_reference
from penchant.train.step import StepSize
from penchant.types import PairLogps, TokenLogps, TokenTree


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of one tree; per response a list with one number per scored token [nats]."""

    policy: list[list[float]] | None
    """None of a reward model, unless its objective has a language-model term."""
    reference: list[list[float]] | None = None
    weights: list[tuple[list[float], list[float]]] | None = None
    """Per pair: what each scored token of chosen and rejected counts."""
    loss: list[float]
    """Per pair, as the next three."""
    chosen_reward: list[float]
    rejected_reward: list[float]
    soft_label: list[float] | None
    scores: list[float] | None = None
    """A reward model's, per response."""
    is_head_new: bool = False
    """Whether those are by a head that has not been trained."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def measure(recipe: ExplainRecipe, objective: Any, tokenizer: Any, tree: TokenTree) -> Measured:
    """Loads the models as a training does, and evaluates the tree before any update.

    Raises ModelError where a model cannot be loaded or cannot read the tree.
    """
    place = placement(recipe, tokenizer, tree)
    job = job_of(recipe, objective, tokenizer, tree)
    try:
        model = build_model(recipe.model, place.dtype, base_dropout=False)
    except OSError as error:
        raise ModelError(str(error)) from error
    prepared = place.prepare(model)
    needs_model = {"reference", "token_kl"} & objective.needs
    named = named_reference(recipe.reference, place) if needs_model else None
    kl_to = None
    if "token_kl" in objective.needs:
        prepared, kl_to = token_kl.beside(job, prepared, named, place)
    reference = None
    if "reference" in objective.needs:
        store = reference_pass.fill(job, None, named or prepared, tree.num_tokens)
        reference = store.logps([tree], place.device)
    with torch.no_grad():
        model.eval()
        policy = prepared.logps([tree], entropy="entropy" in objective.needs, kl_to=kl_to)
    return evaluate(objective, tree, policy, reference)


def placement(recipe: ExplainRecipe, tokenizer: Any, tree: TokenTree) -> Placement:
    """Where and in which numbers the model computes; seeds what is drawn.

    Raises ModelError where it cannot read the tree.
    """
    path, hub = recipe.model.path, hub_keywords(recipe.model)
    config = load.load_config(path, **hub)
    load.check_fit(config, tokenizer, path)
    longest = len(tree.prompt_ids) + max(map(len, tree.response_ids))
    load.check_length(config, longest, path)
    device = torch.device(pick_device(recipe.training.device))
    dtype = load.compute_dtype(path, recipe.model.dtype, **hub)
    torch.manual_seed(recipe.training.seed)
    return Placement(device, dtype, ALONE)


def evaluate(
    objective: Any, tree: TokenTree, policy: TokenLogps, reference: TokenLogps | None
) -> Measured:
    """The objective's numbers, as if this row were a whole step."""
    extras: dict[str, Any] = {
        name: value.to(policy.values_T.device)
        for name, value in pairs.scores([tree], objective.uses).items()
    }
    labels = labels_of(objective, extras)
    if "tokens_per_pair" in objective.uses:
        extras["tokens_per_pair"] = StepSize.of([tree]).tokens_per_pair
    policy_pairs = pairs.pair_logps([tree], policy)
    reference_pairs = None if reference is None else pairs.pair_logps([tree], reference)
    output = objective(policy_pairs, reference_pairs, **extras)
    return Measured(
        policy=lists(policy),
        reference=None if reference is None else lists(reference),
        weights=_weights(objective.token_weights, policy_pairs, reference_pairs),
        loss=output.loss_P.tolist(),
        chosen_reward=output.chosen_reward_P.tolist(),
        rejected_reward=output.rejected_reward_P.tolist(),
        soft_label=labels,
    )


def labels_of(objective: Any, extras: dict[str, Tensor]) -> list[float] | None:
    """The soft label of each pair; None of an objective without them.

    Args: `extras`: what the objective gets of scores and labels, by name.
    """
    from penchant.objectives._soft_labels import LABEL_ARGUMENTS, soft_labels

    base = getattr(objective, "base", objective)
    if not hasattr(base, "bt_beta") or not objective.uses & LABEL_ARGUMENTS:
        return None
    return soft_labels(base.bt_beta, **extras).tolist()


def lists(logps: TokenLogps) -> list[list[float]]:
    """Per response a list."""
    return [one.tolist() for one in logps.per_response()]


def _weights(
    weighting: Any, policy: PairLogps, reference: PairLogps | None
) -> list[tuple[list[float], list[float]]] | None:
    """How far each pair's weighted total moves with each token: its weight, for any weighting."""
    if weighting is None or policy.rejected is None:
        return None
    leaves = []
    for side in (policy.chosen, policy.rejected):
        assert side.logp_T is not None, "pairs are built from tokens"
        leaves.append(side.logp_T.detach().requires_grad_())
    marked = _with_leaves(policy, leaves)
    weighted, _ = weighting(marked, reference)
    totals = weighted.chosen_P.sum() + weighted.rejected_P.sum()
    grads = torch.autograd.grad(totals, leaves)
    sides = [
        grad.split(side.length_P.tolist())  # type: ignore[union-attr]
        for grad, side in zip(grads, (policy.chosen, policy.rejected), strict=True)
    ]
    return [(c.tolist(), r.tolist()) for c, r in zip(*sides, strict=True)]


def _with_leaves(policy: PairLogps, leaves: list[Tensor]) -> PairLogps:
    from dataclasses import replace

    assert policy.rejected is not None, "weights compare two sides"
    return PairLogps(
        replace(policy.chosen, logp_T=leaves[0]), replace(policy.rejected, logp_T=leaves[1])
    )


def job_of(recipe: ExplainRecipe, objective: Any, tokenizer: Any, tree: TokenTree) -> fit.Job:
    """A training on this tree alone, by which models are built; it does not run."""
    return fit.Job(
        model=recipe.model,
        reference=recipe.reference,
        objective=objective,
        tokenizer=tokenizer,
        train_trees=[tree],
        eval_trees=[],
        training=recipe.training,
        folder=Path(),
        recipe_text="",
        data_report={},
    )
