"""A step of a reward model: the same update however it is split, and the weights it should have."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penchant import engine, objectives
from penchant.errors import ModelError
from penchant.models.adapters import add_lora
from penchant.models.config import ModelConfig
from penchant.models.reward_head import load_reward_model
from penchant.models.save import save_model
from penchant.train import last_layer
from penchant.train.config import TaskWeightsConfig
from penchant.train.micro_batches import shared
from penchant.train.reward_step import RewardStep
from penchant.train.reward_tasks import Tasks
from penchant.types import TokenTree
from tests.tiny import (
    arithmetic_in,
    assert_same_gradients,
    gradients,
    random_trees,
    tiny_tokenizer,
    vivid_model,
)

F64 = torch.float64
ONE, MANY = 10_000, 40
"""Token budgets: one micro-batch, or one tree each."""


@cache
def _saved() -> str:
    folder = Path(tempfile.mkdtemp())
    save_model(vivid_model(), tiny_tokenizer(), folder)
    return str(folder)


def reward_model(pooling: Any = "last", language_head: bool = False) -> Any:
    config = ModelConfig(path=_saved())
    return load_reward_model(
        config, F64, seed=3, pooling=pooling, with_language_head=language_head
    ).eval()


def three_tasks(num: int = 4, num_responses: int = 2) -> list[TokenTree]:
    """So many rows of a and b, one more of c; all pairs by score."""
    found = []
    for seed, (task, more) in enumerate((("a", 0), ("b", 0), ("c", 1))):
        for n, tree in enumerate(
            random_trees(num + more, seed, num_responses=num_responses), start=1
        ):
            scores = tree.scores_R or ()
            order = range(len(scores))
            pairs = tuple((i, j) for i in order for j in order if scores[i] > scores[j])
            found.append(replace(tree, row_id=f"{task}:{n}", pairs_P2=pairs))
    return found


def make(
    model: Any,
    objective: Any = None,
    budget: int = ONE,
    layout: Any = "auto",
    names: str = "abc",
    **weights: Any,
) -> RewardStep:
    tasks = Tasks(
        names=tuple(names),
        eval_names=tuple(names),
        weights=TaskWeightsConfig(**weights),
        batches="mixed",
    )
    with arithmetic_in(F64):
        prepared = engine.prepare(model, layout=layout)
    return RewardStep(prepared, objective or objectives.load("bradley-terry"), tasks, budget)


def naive(model: Any, objective: Any, trees: Sequence[TokenTree]) -> dict[str, Tensor]:
    """Mean loss of each task, row by row through the model's own forward; differentiable."""
    losses: dict[str, list[Tensor]] = {}
    for tree in trees:
        scores = []
        for ids in tree.response_ids:
            output = model.base_model(torch.tensor([[*tree.prompt_ids, *ids]]))
            scores.append(model.score(output.last_hidden_state[0, -1])[0])
        for c, r in tree.pairs_P2:
            one = objective(scores[c][None], scores[r][None]).loss_P[0]
            losses.setdefault(tree.row_id[0], []).append(one)
    return {task: torch.stack(own).mean() for task, own in losses.items()}


def trained(step: RewardStep, trees: Sequence[TokenTree]) -> tuple[dict[str, Any], Any]:
    with arithmetic_in(F64):
        row = step.train(trees).means()
    return row, gradients(step.engine.model)


def assert_same_row(row: dict[str, float], other: dict[str, float]) -> None:
    assert row.keys() == other.keys()
    assert row == pytest.approx(other, rel=1e-9, abs=1e-10)


# ------------------------------------------------------------------ the update


def test_uniform_is_the_mean_over_all_pairs() -> None:
    model, trees = reward_model(), three_tasks()
    objective = objectives.load("bradley-terry", centring=0.1)
    row, found = trained(make(model, objective, MANY), trees)
    with arithmetic_in(F64):
        losses = naive(model, objective, trees)
        counts = {"a": 4, "b": 4, "c": 5}
        loss = sum(counts[task] / 13 * one for task, one in losses.items())
        assert isinstance(loss, Tensor)
        loss.backward()
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert_same_gradients(found, gradients(model), 1e-8)
    for task, one in losses.items():
        assert row[f"task/{task}/loss"] == pytest.approx(one.item(), rel=1e-10)
        assert row[f"task/{task}/weight"] == pytest.approx(counts[task] / 13)


def test_more_weighs_by_the_min_norm_point_of_the_head_gradients() -> None:
    """At the shortest combination g, g . g_k is the same for each weighted task, and no less."""
    model, trees = reward_model(), three_tasks()
    row, found = trained(make(model, name="more"), trees)
    with arithmetic_in(F64):
        losses = naive(model, objectives.load("bradley-terry"), trees)
        heads = {
            task: torch.autograd.grad(loss, model.score.weight, retain_graph=True)[0].flatten()
            for task, loss in losses.items()
        }
        weights = {task: row[f"task/{task}/weight"] for task in "abc"}
        whole = sum(weights[task] * losses[task] for task in "abc")
        assert isinstance(whole, Tensor)
        whole.backward()
    assert sum(weights.values()) == pytest.approx(1)
    shortest = sum(weights[task] * heads[task] for task in "abc")
    assert isinstance(shortest, Tensor)
    for task in "abc":
        product = float(shortest @ heads[task])
        assert product >= float(shortest @ shortest) - 1e-9
        if weights[task] > 1e-6:
            assert product == pytest.approx(float(shortest @ shortest), abs=1e-8)
    assert len({round(weight, 6) for weight in weights.values()}) > 1, "uniform would do as well"
    cosine = torch.cosine_similarity(heads["a"], heads["b"], dim=0)
    assert row["gradient_cosine/a/b"] == pytest.approx(float(cosine), abs=1e-9)
    assert_same_gradients(found, gradients(model), 1e-8)


KINDS: list[dict[str, Any]] = [
    {"name": "uniform"},
    {"name": "fixed", "weights": {"a": 1.0, "b": 3.0, "c": 0.0}},
    {"name": "more", "alpha": 0.7, "normalise": "loss+"},
    {"name": "more", "gradients": "last_layer"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values()))[:24])
def test_micro_batches_and_layouts_do_not_change_the_update(kind: dict[str, Any]) -> None:
    trees, objective = three_tasks(3, num_responses=3), objectives.load("bradley-terry")
    kept = None
    for budget, layout in ((ONE, "packed"), (MANY, "packed"), (90, "plain"), (ONE, "plain")):
        step = make(reward_model("average"), objective, budget, layout, **kind)
        rows = []
        for _ in range(2):  # the second step sees the first one's running means
            row, found = trained(step, trees)
            rows.append(row)
        state = step.weigher.state_dict()
        if kept is None:
            kept = (rows, found, state)
            continue
        for row, other in zip(rows, kept[0], strict=True):
            assert_same_row(row, other)
        assert_same_gradients(found, kept[1], 1e-8)
        assert state.keys() == kept[2].keys()
        for name, value in state.items():
            torch.testing.assert_close(value, kept[2][name], rtol=1e-8, atol=1e-10)
    looks = kind["name"] == "more"
    assert step.num_ahead == 0 and bool(state) == looks


def test_only_weights_from_gradients_run_forward_twice() -> None:
    trees = three_tasks()
    for budget, name, ahead in ((MANY, "more", 1), (ONE, "more", 0), (MANY, "uniform", 0)):
        step = make(reward_model(), budget=budget, name=name)
        step.train(trees)
        assert step.num_ahead == ahead


@pytest.mark.parametrize("budget", [ONE, MANY])
def test_a_task_that_is_not_in_a_step_is_left_out(budget: int) -> None:
    step, trees = make(reward_model(), budget=budget, name="more", alpha=0.5), three_tasks()
    step.train(trees)
    before = step.weigher.state_dict()
    row = step.train([tree for tree in trees if tree.row_id[0] != "b"]).means()
    after = step.weigher.state_dict()
    assert "task/b/loss" not in row and not any("/b" in name for name in row)
    assert row["task/a/weight"] + row["task/c/weight"] == pytest.approx(1)
    assert torch.equal(before["momentum_KD"][1], after["momentum_KD"][1])
    assert not torch.equal(before["momentum_KD"][0], after["momentum_KD"][0])


def test_one_task_logs_one_task() -> None:
    trees = [tree for tree in three_tasks() if tree.row_id[0] == "a"]
    step = make(reward_model(), names="a", budget=MANY, name="more")
    row = step.train(trees).means()
    assert not [name for name in row if "task/" in name or "cosine" in name]
    assert step.num_ahead == 0
    other = make(reward_model(), names="a").train(trees).means()
    assert_same_row(row, other)


def test_k_responses_are_the_mean_over_all_ordered_pairs_with_different_scores() -> None:
    """By the formula over scores: sign(s_j - s_i) * (r_j - r_i), ties and absent ones left out."""
    model = reward_model()
    (tree,) = random_trees(1, num_responses=5)
    scores = (3.0, 1.0, 3.0, math.nan, 2.0)
    order = range(5)
    pairs = tuple((i, j) for i in order for j in order if scores[i] > scores[j])
    tree = replace(tree, row_id="a:1", scores_R=scores, pairs_P2=pairs)
    row = make(model, names="a").train([tree]).means()
    rewards = engine.prepare(model).scores([tree]).detach()
    terms = [
        -torch.nn.functional.logsigmoid(math.copysign(1, scores[j] - scores[i])
                                        * (rewards[j] - rewards[i]))
        for i in order for j in order
        if scores[i] != scores[j] and not math.isnan(scores[i] + scores[j])
    ]  # fmt: skip
    assert len(terms) == 10
    assert row["loss"] == pytest.approx(float(torch.stack(terms).mean()), rel=1e-9)


@pytest.mark.parametrize("budget", [ONE, MANY])
def test_the_lm_term_is_the_mean_token_nll_of_the_best_responses(budget: int) -> None:
    model, trees = reward_model(language_head=True), three_tasks(2, num_responses=3)
    plain = make(model, names="abc").evaluate(trees).means()
    objective = objectives.load("bradley-terry", lm_weight=0.5)
    found = make(model, objective, budget).evaluate(trees).means()
    causal = vivid_model(dtype=F64)
    for task in "abc":
        total, count = 0.0, 0
        for tree in (tree for tree in trees if tree.row_id[0] == task):
            best = max(range(3), key=lambda r: (tree.scores_R or ())[r])
            ids = [*tree.prompt_ids, *tree.response_ids[best]]
            with torch.no_grad():
                logp_TV = causal(torch.tensor([ids])).logits[0].log_softmax(-1)
            start = len(tree.prompt_ids)
            total -= sum(float(logp_TV[t - 1, ids[t]]) for t in range(start, len(ids)))
            count += len(ids) - start
        added = found[f"task/{task}/loss"] - plain[f"task/{task}/loss"]
        assert added == pytest.approx(0.5 * total / count, rel=1e-5)


def test_the_last_layer_gradients_are_those_of_the_whole_backward_pass() -> None:
    model, trees = reward_model(), three_tasks()
    wanted = last_layer.parameters(model)
    assert any(one is model.score.weight for one in wanted)
    step = make(model, name="more", gradients="last_layer", alpha=0.25)
    trained(step, trees)
    with arithmetic_in(F64):
        losses = naive(model, objectives.load("bradley-terry"), trees)
        for place, task in enumerate("abc"):
            losses[task].backward(retain_graph=True)
            flat = torch.cat([one.grad.flatten() for one in wanted if one.grad is not None])
            kept = step.weigher.state_dict()["momentum_KD"][place] / 0.25
            torch.testing.assert_close(kept, flat, rtol=1e-6, atol=1e-8)
            model.zero_grad()


def test_a_last_layer_that_does_not_train_is_said_and_not_left_out() -> None:
    """The head's gradient alone would be another weighting than the recipe asks for."""
    first = add_lora(
        reward_model(), r=2, alpha=4, dropout=0.0, targets=["layers.0.self_attn.q_proj"]
    )
    with pytest.raises(ModelError, match=r"nothing of it trains .* take gradients=head"):
        last_layer.parameters(first)
    other = reward_model()
    other.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="has no list of its 7 layers; take gradients=head"):
        last_layer.parameters(other)


def test_dropout_is_the_same_in_both_forward_passes() -> None:
    """Otherwise the weights would be those of another network than the one that learns."""
    adapted = add_lora(reward_model(), r=4, alpha=8, dropout=0.5).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    step = make(adapted, budget=MANY, name="more", normalise="loss")
    seen: list[Tensor] = []
    weigh = step.weigher.weigh

    def spy(gradients_KD: Tensor, losses_K: Tensor, pairs_K: Tensor) -> Any:
        seen.append(losses_K)
        return weigh(gradients_KD, losses_K, pairs_K)

    step.weigher.weigh = spy  # type: ignore[method-assign]
    torch.manual_seed(5)
    row = step.train(three_tasks()).means()
    assert step.num_ahead == 1
    for place, task in enumerate("abc"):
        assert row[f"task/{task}/loss"] == pytest.approx(float(seen[0][place]), rel=1e-6)


def test_each_step_draws_its_own_dropout() -> None:
    """Also where nothing but the step itself draws numbers, and its one forward pass is kept."""
    adapted = add_lora(reward_model(), r=4, alpha=8, dropout=0.5).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    step = make(adapted, name="more")
    torch.manual_seed(5)
    losses = [step.train(three_tasks()).means()["loss"] for _ in range(3)]
    assert step.num_ahead == 0 and len(set(losses)) == 3
    torch.manual_seed(5)
    again = make(adapted, name="more").train(three_tasks()).means()["loss"]
    assert again == pytest.approx(losses[0], rel=1e-12)


class _Small:
    """An engine on a machine whose memory ends at so many trees, from the second call on."""

    def __init__(self, inner: Any, most: int) -> None:
        self.inner, self.most, self.calls = inner, most, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def rewards(self, trees: Any, **given: Any) -> Any:
        self.calls += 1
        if len(trees) > self.most:
            raise MemoryError
        return self.inner.rewards(trees, **given)


def test_memory_that_runs_out_changes_nothing_and_counts_a_step_once() -> None:
    trees = three_tasks()
    whole = make(reward_model(), name="more", alpha=0.5)
    small = make(reward_model(), name="more", alpha=0.5)
    small.engine = _Small(small.engine, 5)  # type: ignore[assignment]
    (row, found), (other, same) = trained(whole, trees), trained(small, trees)
    assert small.token_budget < whole.token_budget
    assert_same_row(row, other)
    assert_same_gradients(found, same, 1e-8)
    assert small.weigher.state_dict()["num_updates_K"].tolist() == [1, 1, 1]


# ------------------------------------------------------------------ mixtures of experts

EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
}
COEFFICIENT = 30.0
"""Large, so that a loss that is left out or counted twice shows in every gradient."""


def expert_model(name: str, folder: Path) -> Any:
    config = {"output_router_logits": True, "router_aux_loss_coef": COEFFICIENT} | EXPERTS[name]
    save_model(vivid_model(name, **config), tiny_tokenizer(), folder)
    model = load_reward_model(ModelConfig(path=str(folder)), F64, seed=3).eval()
    model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model


@pytest.mark.parametrize("name", EXPERTS)
def test_the_load_balancing_loss_is_transformers_own_in_both_layouts(
    name: str, tmp_path: Path
) -> None:
    """Of one response a tree, so that no prompt is counted twice."""
    model, trees = expert_model(name, tmp_path), random_trees(5, num_responses=1)
    layers: list[list[Tensor]] = [[], []]
    kept = {}
    with arithmetic_in(F64):
        for tree in trees:
            row = torch.tensor([[*tree.prompt_ids, *tree.response_ids[0]]])
            routed = model.base_model(row, output_router_logits=True).router_logits
            for layer, logits in zip(layers, routed, strict=True):
                layer.append(logits.view(row.shape[1], -1))
        function = vars(sys.modules[type(model).__module__])["load_balancing_loss_func"]
        expected = COEFFICIENT * function(tuple(map(torch.cat, layers)), 4, 2)
        for layout in ("packed", "plain"):
            prepared = engine.prepare(model, layout)
            assert prepared.rewards(trees).auxiliary is None
            found = prepared.rewards(trees, with_auxiliary=True)
            assert found.auxiliary is not None
            assert found.auxiliary.item() == pytest.approx(expected.item(), rel=1e-6)
            (found.scores_R.double().sum() + found.auxiliary).backward()
            kept[layout] = gradients(model)
        (prepared.rewards(trees).scores_R.double().sum() + expected).backward()
    wanted = gradients(model)
    for found in kept.values():
        assert_same_gradients(found, wanted, 1e-6)  # the function itself counts in float32


@pytest.mark.parametrize("budget", [ONE, MANY])
@pytest.mark.parametrize("kind", ["uniform", "more"])
def test_a_step_adds_the_load_balancing_loss_of_each_micro_batch(
    kind: str, budget: int, tmp_path: Path
) -> None:
    model, trees = expert_model("qwen3_moe", tmp_path), three_tasks()
    step = make(model, budget=budget, name=kind)
    row, found = trained(step, trees)
    with arithmetic_in(F64):
        for share in shared(step, trees, budget):
            batch = [trees[place] for place in share.batch]
            auxiliary = step.engine.rewards(batch, with_auxiliary=True).auxiliary
            assert auxiliary is not None
            (len(batch) / len(trees) * auxiliary).backward()
    added = gradients(model)
    model.config.output_router_logits = False
    other, without = trained(make(model, budget=budget, name=kind), trees)
    assert_same_row(row, other)
    for parameter, value in without.items():
        more = added[parameter]
        without[parameter] = value if more is None else (0 if value is None else value) + more
    assert_same_gradients(found, without, 1e-6)
    router = next(key for key in added if "gate.weight" in key)
    assert added[router] is not None and added[router].norm() > 1e-2 * found[router].norm()


@pytest.mark.parametrize("adapted", [False, True])
def test_its_gradient_is_the_same_with_gradient_checkpointing(
    adapted: bool, tmp_path: Path
) -> None:
    kept = []
    for again in (False, True):
        model = expert_model("qwen3_moe", tmp_path / str(again)).float()
        if adapted:
            model = add_lora(model, r=2, alpha=4, dropout=0.0, targets=["q_proj", "v_proj"])
            generator = torch.Generator().manual_seed(2)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(std=0.3, generator=generator)
        if again:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
            model.train()
        torch.manual_seed(0)
        found = engine.prepare(model, "packed").rewards(three_tasks(2), with_auxiliary=True)
        assert found.auxiliary is not None
        (found.scores_R.sum() + found.auxiliary).backward()
        kept.append(gradients(model))
    assert_same_gradients(kept[1], kept[0], 1e-5)


def test_a_model_without_such_a_loss_is_refused_where_its_config_asks_for_it() -> None:
    model = reward_model()
    model.config.output_router_logits = True
    with pytest.raises(ModelError, match="has no load-balancing loss here; set output_router_log"):
        make(model).train(three_tasks())


# ------------------------------------------------------------------ metrics


def test_a_tie_of_rewards_counts_a_half_in_accuracy_and_nothing_in_the_strict_one() -> None:
    model = reward_model()
    torch.nn.init.zeros_(model.score.weight)
    row = make(model).evaluate(three_tasks()).means()
    assert (row["accuracy"], row["rewards/accuracies"]) == (0.5, 0.0)
    assert row["task/a/accuracy"] == 0.5
    assert row["loss"] == pytest.approx(math.log(2))


def test_scores_that_are_not_finite_name_their_rows() -> None:
    model, trees = reward_model(), three_tasks()
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    for budget in (ONE, MANY):
        totals = make(model, budget=budget, name="more").train(trees)
        assert set(totals.non_finite_rows) == {tree.row_id for tree in trees}
