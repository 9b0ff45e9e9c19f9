"""golden/intel_dpo.json: loss, log-probabilities and metrics of Intel's DPO trainer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import nn

from penchant import engine, objectives
from penchant.train.metrics import Totals
from penchant.train.pairs import pair_logps
from penchant.types import PairLogps, TokenTree
from tests.golden.vectors import Case, check_all, read, same


def _loss(case: Case) -> None:
    dtype = getattr(torch, case["dtype"])
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    policy, reference = (
        PairLogps.from_totals(
            *(
                torch.tensor(case[f"{model}_{side}_logps"], dtype=dtype, requires_grad=True)
                for side in ("chosen", "rejected")
            )
        )
        for model in ("policy", "reference")
    )
    output = objectives.load("dpo", beta=case["beta"])(policy, reference)
    assert output.loss_P.dtype == dtype
    same(output.loss_P.detach(), case["losses"], tolerance=tolerance)
    same(output.loss_P.detach().mean(), case["mean_loss"], tolerance=tolerance)
    same(output.chosen_reward_P, case["chosen_rewards"], tolerance=tolerance)
    same(output.rejected_reward_P, case["rejected_rewards"], tolerance=tolerance)
    margin_P = output.chosen_reward_P - output.rejected_reward_P
    same((margin_P > 0).double().mean(), case["accuracy"])
    gradients = torch.autograd.grad(output.loss_P.mean(), [policy.chosen_P, policy.rejected_P])
    for gradient_P, side in zip(gradients, ("chosen", "rejected"), strict=True):
        same(gradient_P, case[f"grad_mean_loss_wrt_policy_{side}"], tolerance=tolerance)


def test_losses() -> None:
    names = (
        "identical_policy_and_ref",
        "policy_prefers_chosen",
        "beta_0.01",
        "beta_1",
        "huge_positive_margin",
        "huge_negative_margin",
        "both_rewards_fall_but_margin_positive",
        "mixed_batch_of_4_f32",
    )
    cases = read("intel_dpo.json")["dpo_loss"]["cases"]
    assert check_all(cases, dict.fromkeys(names, _loss), {}) == (8, 0)


class StoredLogits(nn.Module):
    """A language model that says what the case says it says, row by row."""

    def __init__(self, logits_RLV: torch.Tensor) -> None:
        super().__init__()
        self.logits_RLV = nn.Parameter(logits_RLV)

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits_RLV[:, : input_ids.shape[1]])


def _tree(rows: Sequence[Sequence[int]], pairs_P2: tuple[tuple[int, int], ...] = ()) -> TokenTree:
    """Label rows that share a prompt: -100 before the response, and behind it as padding.

    The first position is prompt whatever its label says: nothing predicts it.
    """
    prompt = max(1, next(place for place, label in enumerate(rows[0]) if label != -100))
    responses = tuple(tuple(label for label in row[prompt:] if label != -100) for row in rows)
    return TokenTree(
        row_id="case:1",
        prompt_ids=(0,) * prompt,
        response_ids=responses,
        response_masks=tuple((True,) * len(response) for response in responses),
        pairs_P2=pairs_P2,
    )


def _batch_logps(case: Case) -> None:
    model = StoredLogits(torch.tensor(case["logits"], dtype=torch.float64))
    logps = engine.prepare(model, layout="plain").logps([_tree(case["labels"])])
    assert logps.values_T.dtype == torch.float64
    same(logps.values_T.sum()[None].detach(), case["logps"])
    logps.values_T.sum().backward()
    same(model.logits_RLV.grad, case["grad_sum_wrt_logits"])


def test_batch_logps() -> None:
    names = (
        "prompt_masked",
        "first_position_label_is_never_scored",
        "single_scored_token",
        "label_zero_is_a_real_token",
    )
    cases = read("intel_dpo.json")["get_batch_logps"]["cases"]
    assert check_all(cases, dict.fromkeys(names, _batch_logps), {}) == (4, 0)


def _metrics(case: Case) -> None:
    """Float32. `logits/*` are left out: upstream takes their mean over padding and prompt too."""
    num_pairs = case["pairs"]
    # Rows come chosen first, then rejected; a tree has its two side by side.
    order = [row for pair in range(num_pairs) for row in (pair, pair + num_pairs)]
    trees = [
        _tree([case["labels"][pair], case["labels"][pair + num_pairs]], ((0, 1),))
        for pair in range(num_pairs)
    ]
    sides = []
    for model in ("policy", "reference"):
        stored = StoredLogits(torch.tensor(case[f"{model}_logits"])[order])
        with torch.no_grad():
            logps = engine.prepare(stored, layout="plain").logps(trees)
        sides.append(pair_logps(trees, logps))
    totals = Totals()
    output = objectives.load("dpo", beta=case["beta"])(*sides)
    totals.add(sides[0], output, [tree.row_id for tree in trees])
    means = totals.means()
    same(means.pop("loss"), case["loss"], tolerance=1e-5)
    compared = {key for key in case["metrics"] if not key.startswith("logits/")}
    ours_alone = {"lengths/chosen", "lengths/rejected", "rewards/length_correlation"}
    assert set(means) - ours_alone == compared
    for key in compared:
        same(means[key], case["metrics"][key], tolerance=1e-5)


def test_metrics() -> None:
    names = (
        "policy_equals_reference:train",
        "different_models:train",
        "different_models_beta_0.3:train",
        "three_pairs:train",
    )
    cases = read("intel_dpo.json")["get_batch_metrics"]["cases"]
    assert check_all(cases, dict.fromkeys(names, _metrics), {}) == (4, 0)


def test_sections() -> None:
    """Every section of the file is compared, here or in the test of its tokens and layers."""
    sections = {key for key in read("intel_dpo.json") if not key.startswith("_")}
    here = {"dpo_loss", "get_batch_logps", "get_batch_metrics"}
    beside = {"prepare_features", "collate", "find_all_linear_names"}
    fault = {"set_comprehension_defect"}  # upstream shuffles prompts and answers apart
    assert sections == here | beside | fault
