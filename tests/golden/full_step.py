"""The full steps of dpo_gamma.json and slic_dpo.json: float32, with an NLL term on a best response.

There the best response is a third one. Here the NLL term is on chosen, so the two parts of the
total are computed apart, each by its objective: the contrast by X, the NLL by sft.
"""

from __future__ import annotations

import torch

from penchant import objectives
from penchant.types import PairLogps, ResponseLogps
from tests.golden.vectors import Case, same, zeros_like

TOLERANCE = 1e-5

NAMES = {"dpo-gamma": "dpo-gamma", "hinge": "slic-dpo", "sigmoid": "dpo"}


def check_full_step(case: Case) -> str:
    """Compares total loss and metrics; returns the name of the objective that decides."""
    given, expected = case["hyperparameters"], case["outputs"]
    policy = _totals(expected, "policy")
    reference = zeros_like(policy) if given["reference_free"] else _totals(expected, "reference")
    name = NAMES[given["loss_type"]]
    fields = {"gamma": given["gamma"]} if name == "dpo-gamma" else {}
    output = objectives.load(name, beta=given["beta"], **fields)(policy, reference)
    nll = _nll(expected)
    same(nll, expected["nll_loss_token_mean"], tolerance=TOLERANCE)
    total = given["lambda_contrast"] * output.loss_P.mean() + given["lambda_sft"] * nll
    same(total, expected["total_loss"], tolerance=TOLERANCE)
    margin_P = output.chosen_reward_P - output.rejected_reward_P
    metrics = {
        "rewards/chosen": output.chosen_reward_P.mean(),
        "rewards/rejected": output.rejected_reward_P.mean(),
        "rewards/margins": margin_P.mean(),
        "rewards/accuracies": (margin_P > 0).float().mean(),
        "logps/chosen": policy.chosen_P.mean(),
        "logps/rejected": policy.rejected_P.mean(),
    }
    for key, value in metrics.items():
        same(value, expected["metrics"][key], tolerance=TOLERANCE)
    return name if given["lambda_contrast"] else "sft"


def _totals(outputs: Case, side: str) -> PairLogps:
    return PairLogps.from_totals(
        torch.tensor(outputs[f"{side}_chosen_logps"]),
        torch.tensor(outputs[f"{side}_rejected_logps"]),
    )


def _nll(outputs: Case) -> torch.Tensor:
    """The file does not say how many tokens the two best responses have; five fit its mean."""
    best = ResponseLogps(
        total_P=torch.tensor(outputs["policy_best_logps"]), length_P=torch.tensor([3, 2])
    )
    return objectives.load("sft")(PairLogps(best, None)).loss_P.mean()
