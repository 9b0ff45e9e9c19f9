"""mmpo, with numbers to redo on a napkin."""

from __future__ import annotations

import math

import pytest
import torch

from penchant import objectives
from penchant.errors import ObjectiveError
from penchant.types import PairLogps
from tests.objectives.napkin import one, pair
from tests.objectives.samples import pairs


def test_one_pair() -> None:
    # p = sigmoid(log 3 * (2 - 1)) = 0.75; margin 1:
    # 0.75 * 0.313262 + 0.25 * 1.313262 = 0.234946 + 0.328315 = 0.563262.
    objective = objectives.load("mmpo", beta=0.5, bt_beta=math.log(3))
    output = objective(
        pair(-10, -12), pair(-11, -11), score_chosen_P=one(2), score_rejected_P=one(1)
    )
    assert output.loss_P.item() == pytest.approx(0.563262, abs=1e-6)
    assert output.chosen_reward_P.item() == 0.5
    assert output.rejected_reward_P.item() == -0.5


def test_least_where_the_reward_gap_is_the_score_gap() -> None:
    # beta * D = 0.5 * 2 = 1 = 0.25 * (7 - 3).
    chosen_P = torch.tensor([-10.0], dtype=torch.float64, requires_grad=True)
    policy = PairLogps.from_totals(chosen_P, torch.tensor([-12.0], dtype=torch.float64))
    output = objectives.load("mmpo", beta=0.5, bt_beta=0.25)(
        policy, pair(-11, -11), score_chosen_P=one(7), score_rejected_P=one(3)
    )
    output.loss_P.sum().backward()
    assert chosen_P.grad is not None and chosen_P.grad.item() == pytest.approx(0, abs=1e-15)


def test_bt_beta_zero_is_a_label_of_one_half() -> None:
    # 0.5 * 0.313262 + 0.5 * 1.313262 = 0.813262, whatever the scores.
    objective = objectives.load("mmpo", beta=0.5, bt_beta=0)
    output = objective(
        pair(-10, -12), pair(-11, -11), score_chosen_P=one(9), score_rejected_P=one(1)
    )
    assert output.loss_P.item() == pytest.approx(0.813262, abs=1e-6)


def test_a_certain_label_is_dpo() -> None:
    label_P = torch.ones(5, dtype=torch.float64)
    mmpo = objectives.load("mmpo", beta=0.3, bt_beta=1)(pairs(0), pairs(1), soft_label_P=label_P)
    assert torch.equal(mmpo.loss_P, objectives.load("dpo", beta=0.3)(pairs(0), pairs(1)).loss_P)


@pytest.mark.parametrize(("gap", "loss"), [(1e6, 0.313262), (-1e6, 1.313262)])
def test_huge_score_gaps_do_not_overflow(gap: float, loss: float) -> None:
    objective = objectives.load("mmpo", beta=0.5, bt_beta=2.2)
    output = objective(
        pair(-10, -12), pair(-11, -11), score_chosen_P=one(gap), score_rejected_P=one(0)
    )
    assert output.loss_P.item() == pytest.approx(loss, abs=1e-6)


def test_soft_label_takes_the_place_of_scores_where_it_is_a_number() -> None:
    objective = objectives.load("mmpo", beta=0.5, bt_beta=math.log(3))
    twice = PairLogps.from_totals(one(-10).repeat(2), one(-12).repeat(2))
    reference = PairLogps.from_totals(one(-11).repeat(2), one(-11).repeat(2))
    output = objective(
        twice,
        reference,
        score_chosen_P=one(2).repeat(2),
        score_rejected_P=one(1).repeat(2),
        soft_label_P=torch.tensor([0.5, torch.nan], dtype=torch.float64),
    )
    # As in the two tests above: 0.813262 with p = 0.5, 0.563262 with p = 0.75 from the scores.
    assert output.loss_P.tolist() == pytest.approx([0.813262, 0.563262], abs=1e-6)


def test_whole_number_scores() -> None:
    objective = objectives.load("mmpo", beta=0.5, bt_beta=math.log(3))
    output = objective(
        pair(-10, -12),
        pair(-11, -11),
        score_chosen_P=torch.tensor([2]),
        score_rejected_P=torch.tensor([1]),
    )
    assert output.loss_P.item() == pytest.approx(0.5632617, abs=1e-7)


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"score_chosen_P": one(1)},
        {"score_chosen_P": one(1), "score_rejected_P": one(math.nan)},
        {"soft_label_P": one(math.nan)},
        {"soft_label_P": one(1.5)},
        {"soft_label_P": one(-0.1)},
    ],
)
def test_a_pair_without_label_is_an_error(labels: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ObjectiveError, match="score"):
        objectives.load("mmpo", bt_beta=1)(pair(-10, -12), pair(-11, -11), **labels)


def test_refuses_label_smoothing() -> None:
    with pytest.raises(ObjectiveError, match="exclude each other"):
        objectives.load("mmpo", bt_beta=1, label_smoothing=0.1)


def test_needs_bt_beta() -> None:
    with pytest.raises(ObjectiveError, match=r"needs bt_beta .*beta .*default 0.01"):
        objectives.load("mmpo")
