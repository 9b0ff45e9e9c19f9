"""golden/mmpo.json: the soft-label loss of kykim0/margin-matching-pref-opt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from penchant import objectives
from penchant.types import PairLogps
from tests.golden.vectors import Case, check_all, read, same, same_output, totals, zeros_like


def _scores(inputs: Case) -> dict[str, Tensor]:
    return {
        f"score_{side}_P": torch.tensor(inputs[f"scores_{side}"], dtype=torch.float64)
        for side in ("chosen", "rejected")
    }


def _run(case: Case, name: str, fields: dict[str, Any], **extras: Tensor) -> None:
    policy, reference = totals(case["inputs"], "policy"), totals(case["inputs"], "reference")
    assert policy is not None
    objective = objectives.load(name, beta=case["hyperparameters"]["beta"], **fields)
    same_output(objective(policy, reference, **extras), policy, case["outputs"])


def _mmpo(case: Case) -> None:
    fields = {"bt_beta": case["hyperparameters"]["bt_beta"]}
    _run(case, "mmpo", fields, **_scores(case["inputs"]))


def _dpo(case: Case) -> None:
    _run(case, "dpo", {"label_smoothing": case["hyperparameters"]["label_smoothing"]})


def _hinge(case: Case) -> None:
    """Upstream drops the scores on the way; ours takes none."""
    _run(case, "slic-dpo", {})


def _soft_labels(case: Case) -> None:
    """Row b's texts are already swapped in the case, so its label is 1 - 0.3; row c has none."""
    given, ids = case["inputs"]["soft_label_overrides"], case["inputs"]["prompt_ids"]
    labels = [max(given[i], 1 - given[i]) if i in given else float("nan") for i in ids]
    extras = _scores(case["inputs"]) | {"soft_label_P": torch.tensor(labels, dtype=torch.float64)}
    _run(case, "mmpo", {"bt_beta": case["hyperparameters"]["bt_beta"]}, **extras)


MATCHED = {
    "dpo_no_bt_beta": _dpo,
    "mmpo_gamma1.1": _mmpo,
    "mmpo_beta0.1_gamma0.5": _mmpo,
    "mmpo_huge_score_margin": _mmpo,
    "mmpo_optimum": _mmpo,
    "mmpo_soft_label_override": _soft_labels,
    "dpo_label_smoothing_no_scores": _dpo,
    "hinge_ignores_p": _hinge,
}
LEFT_OUT = {"kto_pair": "another objective: a later issue brings kto"}


def test_losses() -> None:
    assert check_all(read("mmpo.json")["cases"], MATCHED, LEFT_OUT) == (8, 1)


def _reward_model(case: Case) -> None:
    """Soft-label cross-entropy on rewards is mmpo at beta 1 against a reference of zeros.

    The values with "upstream_shapes" are the fault where every pair gets the batch's mean label.
    """
    inputs, expected = case["inputs"], case["outputs"]
    rewards = {
        "policy_chosen_logps": inputs["rewards_chosen"],
        "policy_rejected_logps": inputs["rewards_rejected"],
    }
    policy = totals(rewards, "policy")
    assert isinstance(policy, PairLogps)
    objective = objectives.load("mmpo", beta=1, bt_beta=case["hyperparameters"]["bt_beta"])
    output = objective(policy, zeros_like(policy), **_scores(inputs))
    same(output.loss_P.mean().detach(), expected["mean_loss_correct_pairing"])
    gradients = torch.autograd.grad(output.loss_P.mean(), [policy.chosen_P, policy.rejected_P])
    same(gradients[0], expected["grad_rewards_chosen_correct_pairing"])
    same(gradients[1], expected["grad_rewards_rejected_correct_pairing"])


def test_reward_model() -> None:
    names = ("rm_gamma1.0", "rm_gamma0.3_single", "rm_huge_rewards", "rm_gamma2.2")
    matched = dict.fromkeys(names, _reward_model)
    assert check_all(read("mmpo.json")["reward_model_cases"], matched, {}) == (4, 0)
