"""Reads reference vectors and compares with them; the counts of each file are asserted in its test.

A case is either compared, by the function that its test names for it, or left out with a reason. A
case that is in the file and in neither table fails the test, and so does one that is in no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from penchant.types import ObjectiveOutput, PairLogps
from tests.shared import shared_folder

Case = Mapping[str, Any]


def read(file: str) -> Any:
    """A vector file; skips the test where the shared folder is not there."""
    return json.loads((shared_folder() / "golden" / file).read_text())


def totals(inputs: Case, side: str) -> PairLogps | None:
    """Summed log-probabilities of "policy" or "reference"; None where the case has none."""
    if inputs.get(f"{side}_chosen_logps") is None:
        return None
    return PairLogps.from_totals(
        torch.tensor(inputs[f"{side}_chosen_logps"], dtype=torch.float64, requires_grad=True),
        torch.tensor(inputs[f"{side}_rejected_logps"], dtype=torch.float64, requires_grad=True),
    )


def zeros_like(policy: PairLogps) -> PairLogps:
    """The reference of a case that has none: every response has log-probability 0."""
    zero_P = torch.zeros_like(policy.chosen_P)
    return PairLogps.from_totals(zero_P, zero_P)


def same(got: Tensor | float, expected: Any, *, tolerance: float = 1e-9) -> None:
    """Equal to the tolerance, absolutely or relatively; dtype must be what was asked of it."""
    got = torch.as_tensor(got)
    wanted = torch.as_tensor(expected, dtype=got.dtype)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def same_output(output: ObjectiveOutput, policy: PairLogps, expected: Case) -> None:
    """Losses, rewards, and gradients of the summed loss with respect to both totals."""
    assert output.loss_P.dtype == torch.float64
    same(output.loss_P.detach(), expected["losses"])
    same(output.loss_P.detach().mean(), expected["mean_loss"])
    same(output.chosen_reward_P, expected["chosen_rewards"])
    same(output.rejected_reward_P, expected["rejected_rewards"])
    gradients = torch.autograd.grad(output.loss_P.sum(), [policy.chosen_P, policy.rejected_P])
    same(gradients[0], expected["grad_policy_chosen_logps"])
    same(gradients[1], expected["grad_policy_rejected_logps"])


def check_all(
    cases: list[Case],
    matched: Mapping[str, Callable[[Case], None]],
    left_out: Mapping[str, str],
    name: Callable[[Case], str] = lambda case: case["name"],
) -> tuple[int, int]:
    """Runs each case's comparison; returns how many were compared and how many left out."""
    known = [name(case) for case in cases]
    assert len(set(known)) == len(known), "two cases of one name"
    assert set(known) == set(matched) | set(left_out), "a case is in no table, or in no file"
    assert not set(matched) & set(left_out)
    for case in cases:
        if name(case) in matched:
            try:
                matched[name(case)](case)
            except AssertionError as error:
                raise AssertionError(f"{name(case)}: {error}") from error
    return len(matched), len(left_out)
