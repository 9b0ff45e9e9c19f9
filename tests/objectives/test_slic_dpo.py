"""slic-dpo, with numbers to redo on a napkin."""

from __future__ import annotations

import pytest
import torch

from penchant import objectives
from penchant.errors import ObjectiveError
from penchant.types import PairLogps
from tests.objectives.napkin import pair


@pytest.mark.parametrize(
    ("delta", "loss"),
    [(3.0, 2.0), (1.5, 0.5), (1.0, 0.0), (0.25, 0.0)],
)
def test_one_pair(delta: float, loss: float) -> None:
    # D = 2, reward margin 0.5 * 2 = 1; loss = max(0, delta - 1).
    output = objectives.load("slic-dpo", beta=0.5, delta=delta)(pair(-10, -12), pair(-11, -11))
    assert output.loss_P.item() == loss
    assert output.chosen_reward_P.item() == 0.5
    assert output.rejected_reward_P.item() == -0.5


@pytest.mark.parametrize(("delta", "slope"), [(1.5, -0.5), (1.0, 0.0), (0.5, 0.0)])
def test_slope_is_beta_before_the_hinge_and_nothing_from_it_on(delta: float, slope: float) -> None:
    chosen_P = torch.tensor([-10.0], dtype=torch.float64, requires_grad=True)
    policy = PairLogps.from_totals(chosen_P, torch.tensor([-12.0], dtype=torch.float64))
    objectives.load("slic-dpo", beta=0.5, delta=delta)(policy, pair(-11, -11)).loss_P.backward()
    assert chosen_P.grad is not None and chosen_P.grad.item() == slope


def test_a_hinge_at_zero_would_never_start() -> None:
    with pytest.raises(ObjectiveError, match="delta must be > 0"):
        objectives.load("slic-dpo", delta=0)
