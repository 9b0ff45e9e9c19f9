"""From a row and its numbers to what is shown of it, on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penchant.data.single import SeenToken, SingleRow
from penchant.pages.explain import Explanation, ResponseView, TokenView
from penchant.recipe.reading import ExplainRecipe

if TYPE_CHECKING:
    from penchant.commands._explain_measure import Measured


def explanation(
    recipe: ExplainRecipe,
    objective: Any,
    single: SingleRow,
    measured: Measured | None,
    why_not: str,
) -> Explanation:
    """Everything that is shown of a row."""
    row, tree = single.row, single.tree
    sides = [_side(tree.pairs_P2, index) for index in range(len(single.responses))]
    return Explanation(
        row_id=row.row_id,
        lead=_lead(single, objective),
        prompt=[_plain(token) for token in single.prompt],
        responses=[
            ResponseView(
                title=side,
                tokens=_response_tokens(single, measured, index),
                facts=_facts(single, measured, index),
            )
            for index, side in enumerate(sides)
        ],
        pairs=_pairs(single, measured),
        facts=[
            *_models(recipe, objective),
            ("Objective", ", ".join(f"{key} {value}" for key, value in recipe.objective.items())
             if objective.name != "sft" else "sft"),
            ("Data", f"{row.source}, read as {row.format}"),
        ],
        warnings=_warnings(single, measured, why_not),
    )  # fmt: skip


def _models(recipe: ExplainRecipe, objective: Any) -> list[tuple[str, str]]:
    if objective.input == "ranking":
        return [("Reward model", recipe.model.path)]
    named = recipe.reference.path if recipe.reference else "the policy as it starts"
    return [("Policy", recipe.model.path), ("Reference", named)]


def _lead(single: SingleRow, objective: Any) -> str:
    tree = single.tree
    pairs = len(tree.pairs_P2)
    what = f"{pairs} pair{'s' if pairs != 1 else ''}" if pairs else "no pair"
    scored = f"{objective.name} scores {sum(map(sum, tree.response_masks)):,} of them"
    if objective.input == "ranking":
        scored = f"gives each response a score, which {objective.name} compares"
    return (
        f"A prompt of {len(tree.prompt_ids):,} tokens and {len(tree.response_ids)} "
        f"response{'s' if len(tree.response_ids) != 1 else ''}, {what}; the model reads "
        f"{tree.num_tokens:,} tokens and {scored}."
    )


def _warnings(single: SingleRow, measured: Measured | None, why_not: str) -> list[str]:
    found = [why_not] if why_not else []
    if measured is not None and measured.is_head_new:
        found.append("The head that scores is new, drawn by training.seed: so a training starts.")
    prompt_cut = sum(token.is_cut for token in single.prompt)
    if prompt_cut:
        found.append(f"{prompt_cut:,} prompt tokens are cut (data.truncate_prompt says which end).")
    for index, tokens in enumerate(single.responses):
        lost = sum(token.is_cut for token in tokens)
        if lost:
            side = _side(single.tree.pairs_P2, index)
            found.append(f"{side} loses its last {lost:,} tokens, its end of turn among them.")
    if single.num_retokenised:
        found.append(
            f"{single.num_retokenised} responses were tokenised apart from the prompt, because a "
            "token would span their border."
        )
    if single.dropped:
        found.append(f"Pairs of this row that are not used: {', '.join(single.dropped)}.")
    return found


def _side(pairs: Sequence[tuple[int, int]], index: int) -> str:
    if not pairs:
        return "Response"
    if len(pairs) == 1 and index in pairs[0]:
        return "Chosen" if pairs[0][0] == index else "Rejected"
    return f"Response {index + 1}"


def _plain(token: SeenToken) -> TokenView:
    return TokenView(
        id=token.id,
        text=token.text,
        is_content=token.is_content,
        is_scored=token.is_scored,
        is_cut=token.is_cut,
    )


def _response_tokens(single: SingleRow, measured: Measured | None, index: int) -> list[TokenView]:
    """Tokens of a response with its numbers; those of the first pair that it is in."""
    tree = single.tree
    place, on_left = next(
        ((p, c == index) for p, (c, r) in enumerate(tree.pairs_P2) if index in (c, r)), (0, True)
    )
    marks: Sequence[bool] = ()
    if tree.marks is not None and tree.marks:
        marks = tree.marks[place].chosen if on_left else tree.marks[place].rejected
    policy = iter(measured.policy[index] if measured and measured.policy else ())
    reference = iter(measured.reference[index] if measured and measured.reference else ())
    weights = iter(measured.weights[place][not on_left] if measured and measured.weights else ())
    views = []
    for position, token in enumerate(single.responses[index]):
        scored = token.is_scored
        views.append(
            TokenView(
                **vars(_plain(token)) | {
                    "is_marked": position < len(marks) and marks[position],
                    "policy": next(policy, None) if scored else None,
                    "reference": next(reference, None) if scored else None,
                    "weight": next(weights, None) if scored else None,
                }
            )
        )  # fmt: skip
    return views


def _facts(single: SingleRow, measured: Measured | None, index: int) -> list[tuple[str, str]]:
    scored = sum(single.tree.response_masks[index])
    facts = [("Tokens", f"{len(single.tree.response_ids[index]):,}, {scored:,} of them scored")]
    if single.tree.scores_R is not None:
        facts.append(("Score", f"{single.tree.scores_R[index]:g}"))
    if measured is not None and measured.scores is not None:
        facts.append(("Reward", _number(measured.scores[index])))
    if measured is not None and measured.policy is not None:
        total = sum(measured.policy[index])
        text = f"{total:.2f} nats, {total / max(scored, 1):.2f} a token"
        if measured.reference is not None:
            text += f"; reference {sum(measured.reference[index]):.2f}"
        facts.append(("Log-probability", text))
    return facts


def _pairs(single: SingleRow, measured: Measured | None) -> list[tuple[str, tuple[str, ...]]]:
    if measured is None:
        return []
    tree, shown = single.tree, []
    for place, loss in enumerate(measured.loss):
        chosen, rejected = measured.chosen_reward[place], measured.rejected_reward[place]
        gap = None
        name = "response"
        if tree.pairs_P2:
            c, r = tree.pairs_P2[place]
            name = f"{c + 1} over {r + 1}"
            if tree.scores_R is not None:
                gap = tree.scores_R[c] - tree.scores_R[r]
        label = measured.soft_label[place] if measured.soft_label else None
        numbers = (loss, chosen, rejected, chosen - rejected)
        shown.append(
            (name, (*(_number(one) for one in numbers), _number(gap, "g"), _number(label, ".3f")))
        )
    return shown


def _number(value: float | None, style: str = ".4f") -> str:
    if value is None or value != value:
        return "\u2013"
    return f"{value:{style}}".replace("-", "\u2212")
