"""golden/slic_dpo.json: the hinge loss of martimfasantos/CustomPOs-for-SLMs."""

from __future__ import annotations

import pytest

from penchant import objectives
from penchant.errors import ObjectiveError
from tests.golden.full_step import check_full_step
from tests.golden.vectors import Case, check_all, read, same_output, totals, zeros_like


def _hinge(case: Case) -> None:
    given = case["hyperparameters"]
    policy, reference = totals(case["inputs"], "policy"), totals(case["inputs"], "reference")
    assert policy is not None
    assert given["margin"] == 0
    objective = objectives.load("slic-dpo", beta=given["beta"])
    output = objective(policy, reference or zeros_like(policy))
    same_output(output, policy, case["outputs"])


def _without_smoothing(case: Case) -> None:
    """Upstream takes label_smoothing and ignores it; ours refuses it, and has the same loss."""
    with pytest.raises(ObjectiveError, match="label_smoothing"):
        objectives.load("slic-dpo", label_smoothing=case["hyperparameters"]["label_smoothing"])
    _hinge(case)


MATCHED = {
    "recipe_slic_dpo_beta0.1": _hinge,
    "beta0.05": _hinge,
    "exactly_at_hinge": _hinge,
    "all_violated": _hinge,
    "huge_positive_and_negative_margin": _hinge,
    "slic_cpo_reference_free": _hinge,
    "label_smoothing_ignored": _without_smoothing,
}


def test_losses() -> None:
    assert check_all(read("slic_dpo.json")["cases"], MATCHED, {}) == (7, 0)


def test_full_steps() -> None:
    cases = read("slic_dpo.json")["full_step_cases"]
    assert [check_full_step(case) for case in cases] == ["slic-dpo", "slic-dpo"]
