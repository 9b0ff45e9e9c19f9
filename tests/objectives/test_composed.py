"""Token weights and the NLL term on top of any objective."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from penchant import objectives, weights
from penchant.objectives.sft import chosen_nll
from penchant.types import PairLogps, ResponseLogps
from tests.objectives.napkin import pair
from tests.objectives.samples import NUM_PAIRS, TOKENS, pairs


def _part(whole: PairLogps, start: int, stop: int) -> PairLogps:
    sides = (whole.chosen, whole.rejected)
    return PairLogps(
        *(
            ResponseLogps(total_P=s.total_P[start:stop], length_P=s.length_P[start:stop])
            for s in sides
        )
    )


def test_nll_term_by_hand() -> None:
    # dpo as on its napkin: 0.313262. NLL 10 nats over 5 tokens: 2; 0.1 * 2 = 0.2.
    objective = objectives.load("dpo", beta=0.5, sft_weight=0.1)
    output = objective(pair(-10, -12, chosen_length=5), pair(-11, -11))
    assert output.loss_P.item() == pytest.approx(0.513262, abs=1e-6)
    # By sequence: 0.1 * 10 = 1.
    objective = objectives.load("dpo", beta=0.5, sft_weight=0.1, sft_normalisation="sequence")
    output = objective(pair(-10, -12), pair(-11, -11))
    assert output.loss_P.item() == pytest.approx(1.313262, abs=1e-6)
    assert output.chosen_reward_P.item() == 0.5


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
@pytest.mark.parametrize("name", ["dpo", "slic-dpo"])
def test_mean_over_a_step_is_the_same_however_it_is_split(name: str, normalisation: str) -> None:
    objective = objectives.load(name, sft_weight=0.7, sft_normalisation=normalisation)
    policy, reference = pairs(0), pairs(1)
    whole = objective(policy, reference).loss_P.mean()
    given = {"tokens_per_pair": sum(TOKENS["chosen"]) / NUM_PAIRS}
    given = {key: value for key, value in given.items() if key in objective.uses}
    assert bool(given) == (normalisation == "token")
    for splits in ([0, 2, 5], [0, 1, 4, 5], [0, 1, 2, 3, 4, 5]):
        parts = [
            objective(_part(policy, *span), _part(reference, *span), **given).loss_P.sum()
            for span in pairwise(splits)
        ]
        torch.testing.assert_close(sum(parts) / NUM_PAIRS, whole, rtol=1e-12, atol=1e-12)


def test_token_nll_is_the_mean_over_tokens() -> None:
    policy = pairs(0)
    assert policy.chosen.logp_T is not None
    mean = chosen_nll(policy, "token").mean()
    torch.testing.assert_close(mean, -policy.chosen.logp_T.mean(), rtol=1e-12, atol=1e-12)


def test_weights_reach_the_objective_and_not_the_nll() -> None:
    policy, reference = pairs(0), pairs(1)
    plain = objectives.load("dpo")(*weights.load("bmc", delta=1.5)(policy, reference))
    both = objectives.load("dpo", token_weights={"name": "bmc", "delta": 1.5}, sft_weight=0.4)(
        policy, reference
    )
    nll_P = chosen_nll(policy, "token")
    torch.testing.assert_close(both.loss_P, plain.loss_P + 0.4 * nll_P, rtol=1e-12, atol=1e-12)
    assert torch.equal(both.chosen_reward_P, plain.chosen_reward_P)


def test_shorthand_is_the_mapping() -> None:
    short = objectives.load("dpo-bmc", beta=0.05, delta=3.0, source="own", label_smoothing=0.1)
    long = objectives.load(
        "dpo",
        beta=0.05,
        label_smoothing=0.1,
        token_weights={"name": "bmc", "delta": 3.0, "source": "own"},
    )
    assert short == long
    assert (short.name, short.token_weights.delta) == ("dpo-bmc", 3.0)


def test_any_objective_takes_any_weighting() -> None:
    mmpo = objectives.load("mmpo-bmc", bt_beta=1.1, delta=3.0, sft_weight=0.1)
    assert mmpo.name == "mmpo-bmc"
    assert mmpo.uses == objectives.load("mmpo", bt_beta=1).uses | {"tokens_per_pair"}
    assert mmpo.needs == {"reference"}
    gamma = objectives.load("dpo-gamma-bmc", gamma=0.2, delta=0)
    expected = objectives.load("dpo-gamma", gamma=0.2)(pairs(0), pairs(1)).loss_P
    assert torch.equal(gamma(pairs(0), pairs(1)).loss_P, expected)
