"""golden/dpo_gamma.json: the margin loss of martimfasantos/CustomPOs-for-SLMs and its siblings."""

from __future__ import annotations

from typing import Any

import torch

from penchant import objectives
from tests.golden.full_step import check_full_step
from tests.golden.vectors import Case, check_all, read, same_output, totals, zeros_like


def _run(case: Case, name: str, fields: dict[str, Any], **extras: torch.Tensor) -> None:
    policy, reference = totals(case["inputs"], "policy"), totals(case["inputs"], "reference")
    assert policy is not None
    objective = objectives.load(name, beta=case["hyperparameters"]["beta"], **fields)
    output = objective(policy, reference or zeros_like(policy), **extras)
    same_output(output, policy, case["outputs"])


def _dpo_gamma(case: Case) -> None:
    """Upstream's `margin` is taken off before beta, gamma after it: one knob does for both."""
    given = case["hyperparameters"]
    gamma = given["gamma"] + given["beta"] * given["margin"]
    fields = {"gamma": gamma, "label_smoothing": given["label_smoothing"]}
    _run(case, "dpo-gamma", fields)


def _dpo(case: Case) -> None:
    _run(case, "dpo", {"label_smoothing": case["hyperparameters"]["label_smoothing"]})


def _mpo(case: Case) -> None:
    """`mpo` is mmpo on logits of scores between 0 and 1."""
    scores = {
        f"score_{side}_P": torch.logit(
            torch.tensor(case["inputs"][f"reward_{side}"], dtype=torch.float64)
        )
        for side in ("chosen", "rejected")
    }
    _run(case, "mmpo", {"bt_beta": 1}, **scores)


MATCHED = {
    "recipe_beta0.1_gamma0.5": _dpo_gamma,
    "plain_dpo_sigmoid_same_inputs": _dpo,
    "gamma2_config_class_default": _dpo_gamma,
    "beta0.05_gamma0.25": _dpo_gamma,
    "margin_nonzero": _dpo_gamma,
    "zero_margin_identical": _dpo_gamma,
    "reference_free_variant": _dpo_gamma,
    "mpo_reward_logit": _mpo,
}
LEFT_OUT = {
    "simpo_beta2.5_gamma1.0": "another objective (mean log-probabilities): a later issue",
    "ipo": "another objective: a later issue",
    "orpo": "another objective: a later issue",
    "fcpo": "another objective: a later issue",
    "mallows_dpo": "another objective, and upstream's summed entropy flips its factor's sign",
}


def test_losses() -> None:
    assert check_all(read("dpo_gamma.json")["cases"], MATCHED, LEFT_OUT) == (8, 5)


def test_full_steps() -> None:
    cases = read("dpo_gamma.json")["full_step_cases"]
    assert [check_full_step(case) for case in cases] == ["dpo-gamma", "slic-dpo", "dpo", "sft"]
