"""What a model makes of preference sets: the figures of a set, of its subsets, and of all together.

A reward model judges by its score alone; a policy by implicit reward and by log-probability, each
also on the pairs that its reference finds easy and on those that it finds hard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.errors import DataError
from penchant.evaluate import rewardbench
from penchant.evaluate.measures import Intervals, Measure, measure
from penchant.evaluate.policy import PolicyPairs, ResponseTotals
from penchant.evaluate.sets import PreferenceSet

Table = Mapping[str, NDArray[Any]]
_Measures = dict[str, dict[str, Mapping[str, Any]]]
"""By way of judging and subset: its figures."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A set with what the model says of its pairs."""

    data: PreferenceSet
    margins: Table
    """By way of judging: per pair what chosen is given less what rejected is given."""
    logits: frozenset[str]
    """Which of the margins are logits of a probability that chosen is better."""
    columns: Table
    """By name: the values behind the margins, per pair."""
    policy: PolicyPairs | None = None
    """None for a reward model."""


def judged_by_scores(data: PreferenceSet, scores: Sequence[Sequence[float]]) -> Judged:
    """By a reward model's scores of each tree's responses.

    Raises DataError where a score is NaN or infinite.
    """
    flat_R = np.array([one for tree in scores for one in tree], dtype=np.float64)
    check_finite(data, flat_R, "score")
    places = data.pairs()
    chosen_P, rejected_P = flat_R[places.chosen_P], flat_R[places.rejected_P]
    return Judged(
        data=data,
        margins={"reward": chosen_P - rejected_P},
        logits=frozenset({"reward"}),
        columns={"reward_chosen": chosen_P, "reward_rejected": rejected_P},
    )


def judged_by_policy(
    data: PreferenceSet,
    policy: ResponseTotals,
    reference: ResponseTotals | None,
    beta: float | None,
) -> Judged:
    """By a policy's log-probabilities, and by those relative to a reference.

    Args:
        beta: of the implicit reward; None: its margins are no logits, and are not calibrated.
    Raises DataError where a log-probability is NaN or infinite.
    """
    places = data.pairs()
    sides = {"chosen": places.chosen_P, "rejected": places.rejected_P}
    named = {"policy": policy} | ({} if reference is None else {"reference": reference})
    columns: dict[str, NDArray[Any]] = {}
    for name, totals in named.items():
        check_finite(data, totals.total_R, f"log-probability of the {name}")
        columns |= {f"{name}_{side}": totals.total_R[at] for side, at in sides.items()}
    columns |= {f"tokens_{side}": policy.length_R[at] for side, at in sides.items()}
    pairs = PolicyPairs(
        chosen_P=columns["policy_chosen"],
        rejected_P=columns["policy_rejected"],
        chosen_length_P=columns["tokens_chosen"],
        rejected_length_P=columns["tokens_rejected"],
        reference_chosen_P=columns.get("reference_chosen"),
        reference_rejected_P=columns.get("reference_rejected"),
    )
    logits = frozenset() if beta is None else frozenset({"implicit_reward"})
    return Judged(
        data=data, margins=pairs.margins(beta), logits=logits, columns=columns, policy=pairs
    )


def check_finite(data: PreferenceSet, value_R: NDArray[Any], what: str) -> None:
    """Raises DataError, with the row, where a response's value is NaN or infinite."""
    if np.isfinite(value_R).all():
        return
    bad = int(np.flatnonzero(~np.isfinite(value_R))[0])
    value = value_R[bad]
    for tree in data.trees:
        if bad < len(tree.response_ids):
            raise DataError(
                f"the {what} of response {bad + 1} of {tree.row_id} is {value}, which "
                "nothing can be said of; look at the model's weights, or try model.dtype=float32"
            )
        bad -= len(tree.response_ids)


def figures(judged: Judged, intervals: Intervals) -> dict[str, Any]:
    """All figures of a set as plain values: what evaluation.json holds of it."""
    groups = _Groups(judged, intervals)
    data = judged.data
    whole = np.ones(len(groups.row_P), dtype=bool)
    return {
        "name": data.source.name,
        "path": data.source.path,
        "format": data.format,
        "data": data.counts(),
        "num_pairs": len(groups.row_P),
        "num_prompts": len(set(groups.prompt_P)),
        "measures": {name: one.to_dict() for name, one in groups.measures(whole).items()},
        "split": groups.split(),
        "subset_by": data.subset_by,
        "subsets": groups.subsets(),
    }


class _Groups:
    """Groups of the pairs of one set."""

    def __init__(self, judged: Judged, intervals: Intervals) -> None:
        data = judged.data
        self.judged, self.intervals = judged, intervals
        self.row_P = [data.trees[place].row_id for place in data.pairs().tree_P.tolist()]
        self.prompt_P = [data.prompts[row] for row in self.row_P]

    def measures(self, where_P: NDArray[Any], *, is_part: bool = False) -> dict[str, Measure]:
        """Every way of judging, on some of the pairs; at least one."""
        prompts = [self.prompt_P[place] for place in np.flatnonzero(where_P)]
        return {
            name: measure(
                margin_P[where_P],
                prompts,
                self.intervals,
                are_logits=name in self.judged.logits,
                is_part=is_part,
            )
            for name, margin_P in self.judged.margins.items()
        }

    def brief(self, where_P: NDArray[Any]) -> dict[str, Any]:
        """The same as plain values, without intervals but accuracy's, bins and histograms."""
        found = self.measures(where_P, is_part=True) if where_P.any() else {}
        return {name: one.to_dict(brief=True) for name, one in found.items()}

    def split(self) -> dict[str, Any] | None:
        """Easy and hard pairs of a policy with a reference; None for others."""
        policy = self.judged.policy
        if policy is None or not policy.has_reference:
            return None
        easy_P = policy.is_easy()
        found: dict[str, Any] = {}
        for name, where_P in (("easy", easy_P), ("hard", ~easy_P)):
            found[name] = {
                "num_pairs": int(where_P.sum()),
                "measures": self.brief(where_P),
                "shift": policy.shifts(where_P),
            }
        return found | {"shift": policy.shifts(np.ones(len(easy_P), dtype=bool))}

    def subsets(self) -> list[dict[str, Any]] | None:
        """A row per value of the column, in the order in which they first come."""
        values = self.judged.data.subsets
        if values is None:
            return None
        value_P = np.array([values[row] for row in self.row_P], dtype=object)
        return [
            {
                "subset": value,
                "num_pairs": int((value_P == value).sum()),
                "measures": self.brief(value_P == value),
            }
            for value in dict.fromkeys(value_P.tolist())
        ]


def rewardbench_scores(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """RewardBench's sections over all sets, by way of judging; None where none has its subsets.

    Args:
        sets: as `figures` gives them. A subset that is in several is refused.
    """
    found: _Measures = {}
    has_core = False
    for one in sets:
        if one["name"] in rewardbench.PRIOR_SETS:
            _add_measures(found, one["name"], one)
            continue
        for row in one["subsets"] or ():
            is_core = row["subset"] in rewardbench.CORE_SUBSETS
            has_core = has_core or is_core
            if is_core or row["subset"] in rewardbench.PRIOR_SETS:
                _add_measures(found, row["subset"], row)
    if not has_core:
        return None
    return {name: asdict(_sections(one)) for name, one in found.items()}


def _add_measures(found: _Measures, subset: str, group: Mapping[str, Any]) -> None:
    for name, one in group["measures"].items():
        mine = found.setdefault(name, {})
        if subset in mine:
            raise DataError(f"RewardBench's subset {subset} is in several sets; give it once")
        mine[subset] = one


def _sections(measures: Mapping[str, Mapping[str, Any]]) -> rewardbench.Scores:
    accuracies = {name: (one["accuracy"], one["num_pairs"]) for name, one in measures.items()}
    intervals = {name: one["accuracy_interval"] for name, one in measures.items()}
    return rewardbench.scores(accuracies, intervals)


def pair_rows(judged: Judged) -> Iterator[dict[str, Any]]:
    """One plain row per pair: where it is from, and what the model gave to its two sides."""
    data, places = judged.data, judged.data.pairs()
    columns = {name: value_P.tolist() for name, value_P in judged.columns.items()}
    before = -1
    number = 0
    for pair, place in enumerate(places.tree_P.tolist()):
        number = number + 1 if place == before else 0
        before = place
        row = data.trees[place].row_id
        found: dict[str, Any] = {"set": data.source.name, "row_id": row, "pair": number}
        if data.subsets is not None:
            found["subset"] = data.subsets[row]
        yield found | {name: values[pair] for name, values in columns.items()}
