"""sft, with numbers to redo on a napkin."""

from __future__ import annotations

import pytest
import torch

from penchant import objectives
from penchant.errors import ObjectiveError
from penchant.types import PairLogps, ResponseLogps
from tests.objectives.napkin import pair

TWO = PairLogps(
    ResponseLogps(
        total_P=torch.tensor([-6.0, -2.0], dtype=torch.float64), length_P=torch.tensor([3, 1])
    ),
    None,
)


def test_token_normalised() -> None:
    # 8 nats over 4 tokens: mean 2. Per pair: 6 and 2 over the 2 tokens that a pair has on average.
    output = objectives.load("sft")(TWO)
    assert output.loss_P.tolist() == [3.0, 1.0]
    assert output.chosen_reward_P.tolist() == [-6.0, -2.0]
    assert output.rejected_reward_P.isnan().all()


def test_sequence_normalised() -> None:
    # 8 nats over 2 responses: mean 4.
    output = objectives.load("sft", normalisation="sequence")(TWO)
    assert output.loss_P.tolist() == [6.0, 2.0]


def test_tokens_of_the_whole_step() -> None:
    # This half of a step has 2 tokens a pair, the step 4.
    output = objectives.load("sft")(TWO, tokens_per_pair=4.0)
    assert output.loss_P.tolist() == [1.5, 0.5]


def test_rejected_rewards_are_log_probabilities_where_there_are_any() -> None:
    output = objectives.load("sft")(pair(-3, -5, chosen_length=2))
    assert output.rejected_reward_P.item() == -5
    assert output.loss_P.item() == 1.5


def test_totals_without_lengths() -> None:
    with pytest.raises(ObjectiveError, match="number of chosen tokens"):
        objectives.load("sft")(pair(-3, -5))
    assert objectives.load("sft", normalisation="sequence")(pair(-3, -5)).loss_P.item() == 3


def test_takes_no_second_nll_term_and_no_weights() -> None:
    for fields in ({"sft_weight": 1.0}, {"token_weights": "bmc"}, {"beta": 0.1}):
        with pytest.raises(ObjectiveError, match="no field"):
            objectives.load("sft", **fields)
    with pytest.raises(ObjectiveError, match="sft"):
        objectives.load("sft-bmc")
