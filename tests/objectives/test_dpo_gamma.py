"""dpo-gamma, with numbers to redo on a napkin."""

from __future__ import annotations

import pytest
import torch

from penchant import objectives
from tests.objectives.napkin import pair
from tests.objectives.samples import pairs


def test_one_pair() -> None:
    # D = 2, 0.5 * 2 - 0.25 = 0.75; loss = log(1 + e^-0.75) = log(1.472367) = 0.386871.
    output = objectives.load("dpo-gamma", beta=0.5, gamma=0.25)(pair(-10, -12), pair(-11, -11))
    assert output.loss_P.item() == pytest.approx(0.386871, abs=1e-6)
    # The margin is in the loss, not in the rewards.
    assert output.chosen_reward_P.item() == 0.5
    assert output.rejected_reward_P.item() == -0.5


def test_label_smoothing_flips_the_margin_too() -> None:
    # 0.8 * 0.386871 + 0.2 * log(1 + e^0.75) = 0.309497 + 0.2 * 1.136871 = 0.536871.
    objective = objectives.load("dpo-gamma", beta=0.5, gamma=0.25, label_smoothing=0.2)
    output = objective(pair(-10, -12), pair(-11, -11))
    assert output.loss_P.item() == pytest.approx(0.536871, abs=1e-6)


def test_gamma_zero_is_dpo() -> None:
    fields = {"beta": 0.3, "label_smoothing": 0.1}
    gamma = objectives.load("dpo-gamma", gamma=0, **fields)(pairs(0), pairs(1)).loss_P
    assert torch.equal(gamma, objectives.load("dpo", **fields)(pairs(0), pairs(1)).loss_P)


def test_a_tiny_beta_keeps_the_margin() -> None:
    # gamma / beta would be 1e300 here. loss = log(1 + e^0.5) = 0.974077.
    output = objectives.load("dpo-gamma", beta=5e-301, gamma=0.5)(pair(-10, -12), pair(-11, -11))
    assert output.loss_P.item() == pytest.approx(0.974077, abs=1e-6)
