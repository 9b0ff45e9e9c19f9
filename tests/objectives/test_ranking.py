"""Objectives of reward models: numbers to redo on a napkin, then what every one must keep to."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_type_hints

import pytest
import torch

from penchant import objectives, plugins
from penchant.errors import ObjectiveError
from tests.objectives.napkin import one
from tests.objectives.samples import required_fields, valid_values

NUM_PAIRS = 5
NAMES = [
    name
    for name in plugins.names("penchant.objectives")
    if plugins.find("penchant.objectives", "Objective", name).input == "ranking"
]
EACH = pytest.mark.parametrize("name", NAMES)


def _class(name: str) -> Any:
    return plugins.find("penchant.objectives", "Objective", name)


def _load(name: str, **given: Any) -> Any:
    return objectives.load(name, **required_fields(_class(name)) | given)


def _rewards(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, NUM_PAIRS, generator=generator, dtype=torch.float64).to(dtype)
    return drawn[0].clone().requires_grad_(), drawn[1].clone().requires_grad_()


def _extras(uses: frozenset[str]) -> dict[str, Any]:
    known = {
        "score_chosen_P": torch.tensor([3.0, 2.0, 5.0, 4.0, 9.0], dtype=torch.float64),
        "score_rejected_P": torch.tensor([1.0, 1.5, 4.5, 1.0, 8.0], dtype=torch.float64),
        "soft_label_P": torch.tensor([0.9, torch.nan, torch.nan, 0.7, torch.nan]).double(),
        "lm_nll_P": torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64),
    }
    return {name: known[name] for name in uses}


def _both() -> list[Any]:
    return [_load(n) for n in NAMES] + [_load(n, centring=0.1, lm_weight=0.2) for n in NAMES]


ALL = pytest.mark.parametrize("objective", _both(), ids=lambda o: f"{type(o).__name__}-{o.name}")


# ------------------------------------------------------------------ numbers


def test_bradley_terry_of_one_pair() -> None:
    # D = 3 - 1 = 2: -log sigmoid(2) = 0.126928.
    output = objectives.load("bradley-terry")(one(3), one(1))
    assert output.loss_P.item() == pytest.approx(0.126928, abs=1e-6)
    assert (output.chosen_reward_P.item(), output.rejected_reward_P.item()) == (3, 1)


def test_a_margin_for_all_pairs() -> None:
    # D - margin = 2 - 1: -log sigmoid(1) = 0.313262; a quarter flipped adds 0.25 * 1.
    assert objectives.load("bradley-terry", margin=1)(one(3), one(1)).loss_P.item() == (
        pytest.approx(0.313262, abs=1e-6)
    )
    smoothed = objectives.load("bradley-terry", margin=1, label_smoothing=0.25)
    assert smoothed(one(3), one(1)).loss_P.item() == pytest.approx(0.563262, abs=1e-6)


def test_a_margin_from_the_score_gap() -> None:
    # margin = 0.5 * (7 - 5) = 1, so again -log sigmoid(1).
    objective = objectives.load("bradley-terry-margin", gap_scale=0.5)
    output = objective(one(3), one(1), score_chosen_P=one(7), score_rejected_P=one(5))
    assert output.loss_P.item() == pytest.approx(0.313262, abs=1e-6)


def test_a_label_against_the_scores_still_counts_but_pulls_less() -> None:
    # margin = 0.5 * (5 - 7) = -1 and D = 1: -log sigmoid(2), of slope sigmoid(2) - 1 = -0.119203.
    objective, chosen_P = objectives.load("bradley-terry-margin", gap_scale=0.5), one(2)
    chosen_P.requires_grad_()
    output = objective(chosen_P, one(1), score_chosen_P=one(5), score_rejected_P=one(7))
    output.loss_P.sum().backward()
    assert output.loss_P.item() == pytest.approx(0.126928, abs=1e-6)
    assert chosen_P.grad is not None and chosen_P.grad.item() == pytest.approx(-0.119203, abs=1e-6)


def test_a_soft_label() -> None:
    # p = sigmoid(log 3 * (2 - 1)) = 0.75, D = 1: 0.75 * 0.313262 + 0.25 * 1.313262 = 0.563262.
    objective = objectives.load("bradley-terry-soft", bt_beta=math.log(3))
    output = objective(one(2), one(1), score_chosen_P=one(2), score_rejected_P=one(1))
    assert output.loss_P.item() == pytest.approx(0.563262, abs=1e-6)


def test_centring_and_the_lm_term() -> None:
    # 0.126928 + 0.1 * (3 + 1)^2 + 0.2 * 1.5 = 2.026928.
    objective = objectives.load("bradley-terry", centring=0.1, lm_weight=0.2)
    output = objective(one(3), one(1), lm_nll_P=one(1.5))
    assert output.loss_P.item() == pytest.approx(2.026928, abs=1e-6)


def test_every_pair_keeps_its_own_soft_label() -> None:
    """A label of [pairs] against rewards of [pairs, 1] would give every pair the mean of all."""
    chosen_P, rejected_P = _rewards()
    objective, given = _load("bradley-terry-soft"), _extras(frozenset({"soft_label_P"}))
    given["soft_label_P"] = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    whole = objective(chosen_P, rejected_P, **given).loss_P
    for i in range(NUM_PAIRS):
        own = {name: value[i, None] for name, value in given.items()}
        alone = objective(chosen_P[i, None], rejected_P[i, None], **own).loss_P
        torch.testing.assert_close(alone, whole[i, None], rtol=1e-12, atol=0)


def test_a_soft_label_of_one_is_bradley_terry() -> None:
    chosen_P, rejected_P = _rewards()
    certain = {"soft_label_P": torch.ones(NUM_PAIRS, dtype=torch.float64)}
    soft = objectives.load("bradley-terry-soft", bt_beta=0)(chosen_P, rejected_P, **certain)
    torch.testing.assert_close(
        soft.loss_P, objectives.load("bradley-terry")(chosen_P, rejected_P).loss_P
    )


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("bradley-terry-soft", {"bt_beta": 1, "label_smoothing": 0.1}, "how sure each one is"),
        ("bradley-terry-soft", {"bt_beta": 1, "margin": 1}, "how sure each one is"),
        ("bradley-terry-margin", {"margin": 1}, "for one margin for all pairs use bradley-terry"),
        ("bradley-terry", {"bt_beta": 1}, "bradley-terry-soft"),
        ("bradley-terry-soft", {}, "needs bt_beta"),
        ("bradley-terry", {"sft_weight": 0.1}, "no field 'sft_weight'"),
        ("bradley-terry", {"token_weights": "bmc"}, "no field 'token_weights'"),
        ("bradley-terry-bmc", {}, "takes no token weighting"),
        ("bradley-terry", {"centring": -1}, "centring must be >= 0, got -1"),
        ("bradley-terry", {"label_smoothing": 0.5}, "in \\[0, 0.5\\)"),
        ("dpo", {"centring": 0.1}, "no field 'centring'"),
    ],
)
def test_what_means_nothing_is_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        objectives.load(name, **given)


def test_a_score_that_is_no_number_gives_no_margin() -> None:
    with pytest.raises(ObjectiveError, match=r"no margin for pairs \[0\]"):
        objectives.load("bradley-terry-margin")(
            one(1), one(0), score_chosen_P=one(math.nan), score_rejected_P=one(1)
        )


def test_a_plain_objective_is_not_wrapped() -> None:
    assert objectives.load("bradley-terry", centring=0, lm_weight=0) == (
        objectives.load("bradley-terry")
    )


# ------------------------------------------------------------------ every one of them


@ALL
def test_is_frozen(objective: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(objective, fields(objective)[0].name, 0.2)


@EACH
def test_no_dead_knob(name: str) -> None:
    hints = get_type_hints(_class(name), include_extras=True)
    variants = {f.name: valid_values(hints[f.name]) for f in fields(_class(name))}
    variants |= {"centring": [0.0, 0.3], "lm_weight": [0.0, 0.3]}
    for field, values in variants.items():
        losses = []
        for value in values:
            objective = _load(name, **{field: value})
            losses.append(objective(*_rewards(), **_extras(objective.uses)).loss_P)
        assert not torch.allclose(*losses), f"{field} changes nothing"


@ALL
def test_every_argument_it_uses_matters(objective: Any) -> None:
    given = _extras(objective.uses)
    loss_P = objective(*_rewards(), **given).loss_P
    for name in objective.uses:
        other = {**given, name: given[name] * 0.9}
        assert not torch.allclose(objective(*_rewards(), **other).loss_P, loss_P), name
    with pytest.raises(TypeError):
        objective(*_rewards(), **given, unheard_of_P=torch.zeros(NUM_PAIRS))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype_and_detaches_rewards(objective: Any, dtype: torch.dtype) -> None:
    output = objective(*_rewards(dtype=dtype), **_extras(objective.uses))
    for value_P in (output.loss_P, output.chosen_reward_P, output.rejected_reward_P):
        assert value_P.dtype == dtype and value_P.shape == (NUM_PAIRS,)
    assert output.loss_P.requires_grad
    assert not output.chosen_reward_P.requires_grad and not output.rejected_reward_P.requires_grad


@EACH
def test_gradients_at_equal_rewards(name: str) -> None:
    """A step down the loss raises chosen and lowers rejected, where the label says so."""
    objective, equal_P = _load(name), torch.zeros(NUM_PAIRS, dtype=torch.float64)
    sides = [equal_P.clone().requires_grad_() for _ in range(2)]
    loss_P = objective(*sides, **_extras(objective.uses)).loss_P
    chosen_P, rejected_P = torch.autograd.grad(loss_P.sum(), sides)
    assert (chosen_P < 0).all() and torch.equal(chosen_P, -rejected_P)


@ALL
def test_gradients_are_those_of_finite_differences(objective: Any) -> None:
    given = _extras(objective.uses)
    assert torch.autograd.gradcheck(lambda c, r: objective(c, r, **given).loss_P, _rewards())


@ALL
def test_a_pair_stands_alone_in_any_batch(objective: Any) -> None:
    chosen_P, rejected_P = _rewards()
    given = _extras(objective.uses)
    whole = objective(chosen_P, rejected_P, **given).loss_P
    for i in range(NUM_PAIRS):
        own = {name: value[i, None] for name, value in given.items()}
        alone = objective(chosen_P[i, None], rejected_P[i, None], **own).loss_P
        torch.testing.assert_close(alone, whole[i, None], rtol=1e-12, atol=1e-12)


@ALL
def test_wrong_shapes_are_refused(objective: Any) -> None:
    chosen_P, rejected_P = _rewards()
    given = _extras(objective.uses)
    for wrong in (rejected_P[:, None], rejected_P[:1]):
        with pytest.raises(ObjectiveError, match="rejected_P"):
            objective(chosen_P, wrong, **given)
    with pytest.raises(ObjectiveError, match="chosen_P"):
        objective(chosen_P[:, None], rejected_P[:, None], **given)
    for name, value in given.items():
        for wrong in (value[:, None], value[:1], value[None]):
            with pytest.raises(ObjectiveError, match=name):
                objective(chosen_P, rejected_P, **{**given, name: wrong})


@EACH
def test_extreme_rewards_stay_finite(name: str) -> None:
    far = torch.tensor([5e3, -5e3, 1e4, -1e4, 0], dtype=torch.float64, requires_grad=True)
    objective = _load(name)
    loss_P = objective(far, torch.zeros(5).double(), **_extras(objective.uses)).loss_P
    (gradient_P,) = torch.autograd.grad(loss_P.sum(), far)
    assert loss_P.isfinite().all() and gradient_P.isfinite().all()
