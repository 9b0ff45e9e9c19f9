"""dpo, with numbers to redo on a napkin."""

from __future__ import annotations

import math

import pytest
import torch

from penchant import objectives
from penchant.types import PairLogps
from tests.objectives.napkin import pair


def test_one_pair() -> None:
    # D = (-10 - -11) - (-12 - -11) = 2; margin = 0.5 * 2 = 1; loss = log(1 + e^-1) = 0.313262.
    output = objectives.load("dpo", beta=0.5)(pair(-10, -12), pair(-11, -11))
    assert output.loss_P.item() == pytest.approx(0.313262, abs=1e-6)
    assert output.chosen_reward_P.item() == 0.5
    assert output.rejected_reward_P.item() == -0.5


def test_label_smoothing() -> None:
    # 0.9 * 0.313262 + 0.1 * log(1 + e) = 0.281935 + 0.131326 = 0.413262.
    output = objectives.load("dpo", beta=0.5, label_smoothing=0.1)(pair(-10, -12), pair(-11, -11))
    assert output.loss_P.item() == pytest.approx(0.413262, abs=1e-6)


def test_policy_equal_to_reference() -> None:
    """Loss log 2, gradient half of beta on either side."""
    chosen_P = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    rejected_P = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    policy = PairLogps.from_totals(chosen_P, rejected_P)
    output = objectives.load("dpo", beta=0.2)(policy, pair(-3, -4))
    assert output.loss_P.item() == pytest.approx(math.log(2), abs=1e-12)
    output.loss_P.sum().backward()
    assert chosen_P.grad is not None and chosen_P.grad.item() == pytest.approx(-0.1, abs=1e-12)
    assert rejected_P.grad is not None and rejected_P.grad.item() == pytest.approx(0.1, abs=1e-12)
