"""bmc, with numbers to redo on a napkin."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from penchant import objectives, weights
from penchant.errors import ObjectiveError
from penchant.types import PairLogps
from tests.objectives.samples import pairs

HALF, FIFTH = math.log(0.5), math.log(0.2)


def _pair(chosen: list[float], rejected: list[float], **marks: Any) -> PairLogps:
    return PairLogps.from_tokens(
        chosen=[torch.tensor(chosen, dtype=torch.float64, requires_grad=True)],
        rejected=[torch.tensor(rejected, dtype=torch.float64, requires_grad=True)],
        **{key: [torch.tensor(mark)] for key, mark in marks.items()},
    )


MARKS = {"chosen_marks": [True, False, True], "rejected_marks": [False, True]}
POLICY = _pair([HALF, HALF, FIFTH], [HALF, FIFTH], **MARKS)
REFERENCE = _pair([FIFTH, FIFTH, HALF], [HALF, HALF])


def test_weights_by_hand() -> None:
    # chosen: 1/p = 2, 2, 5; marked first and last; at most 3: weights 1 + 2, 1, 1 + 3.
    policy, reference = weights.load("bmc", delta=3.0)(POLICY, REFERENCE)
    assert policy.chosen_P.item() == pytest.approx(3 * HALF + HALF + 4 * FIFTH, abs=1e-12)
    assert policy.rejected_P.item() == pytest.approx(HALF + 4 * FIFTH, abs=1e-12)
    # The reference gets the same weights, and needs no marks.
    assert reference.chosen_P.item() == pytest.approx(3 * FIFTH + FIFTH + 4 * HALF, abs=1e-12)
    assert reference.rejected_P.item() == pytest.approx(HALF + 4 * HALF, abs=1e-12)


def test_own_source_by_hand() -> None:
    # The reference's own 1/p are 5, 5, 2 and 2, 2.
    policy, reference = weights.load("bmc", delta=3.0, source="own")(POLICY, REFERENCE)
    assert policy.chosen_P.item() == pytest.approx(3 * HALF + HALF + 4 * FIFTH, abs=1e-12)
    assert reference.chosen_P.item() == pytest.approx(4 * FIFTH + FIFTH + 3 * HALF, abs=1e-12)
    assert reference.rejected_P.item() == pytest.approx(HALF + 3 * HALF, abs=1e-12)


def test_weights_are_constants_to_the_gradient() -> None:
    policy, _ = weights.load("bmc", delta=3.0)(POLICY, None)
    (gradient_T,) = torch.autograd.grad(policy.chosen_P.sum(), POLICY.chosen.logp_T)
    assert gradient_T.tolist() == pytest.approx([3, 1, 4], abs=1e-12)


def test_delta_zero_changes_nothing_even_without_marks() -> None:
    unmarked = _pair([HALF], [FIFTH])
    policy, reference = weights.load("bmc", delta=0)(unmarked, REFERENCE)
    assert policy is unmarked and reference is REFERENCE


def test_without_a_reference() -> None:
    policy, reference = weights.load("bmc")(POLICY, None)
    assert reference is None
    assert policy.chosen_P < POLICY.chosen_P


def test_tokens_and_lengths_stay() -> None:
    policy, _ = weights.load("bmc")(POLICY)
    assert torch.equal(policy.chosen.logp_T, POLICY.chosen.logp_T)
    assert torch.equal(policy.chosen.length_P, POLICY.chosen.length_P)


@pytest.mark.parametrize(
    ("policy", "reference", "message"),
    [
        (_pair([HALF], [FIFTH]), None, "from_tokens, with chosen_marks"),
        (PairLogps.from_totals(torch.zeros(1), torch.zeros(1)), None, "from_tokens"),
        (POLICY, PairLogps.from_totals(torch.zeros(1), torch.zeros(1)), "same tokens"),
        (POLICY, _pair([HALF, HALF], [HALF, FIFTH]), "same tokens"),
        (PairLogps(POLICY.chosen, None), None, "chosen only"),
    ],
)
def test_what_it_cannot_weight(policy: PairLogps, reference: PairLogps, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        weights.load("bmc")(policy, reference)


def test_shallow_clamp_is_a_constant_weight() -> None:
    """1/p is at least 1, so any delta up to 1 gives marked tokens the weight 1 + delta."""
    policy, _ = weights.load("bmc", delta=0.5)(POLICY)
    assert policy.chosen_P.item() == pytest.approx(1.5 * HALF + HALF + 1.5 * FIFTH, abs=1e-12)


def test_pairs_do_not_mix() -> None:
    """A pair's weighted totals are the same alone and among others."""
    weighting = weights.load("bmc", delta=1.7)
    whole, _ = weighting(pairs(0))
    for i in range(len(whole)):
        alone, _ = weighting(pairs(0, only=i))
        assert torch.equal(alone.chosen_P, whole.chosen_P[i, None])


def test_list_of_stop_words_is_kept_as_a_tuple() -> None:
    """So that a weighting, and with it an objective, can be compared and hashed."""
    objective = objectives.load("dpo-bmc", stop_words=["and", "or"])
    assert objective.token_weights.stop_words == ("and", "or")
    assert hash(objective) == hash(objectives.load("dpo-bmc", stop_words=["and", "or"]))
