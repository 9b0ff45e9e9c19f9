"""From the scores of a pair to the probability that its chosen response is the better one."""

from __future__ import annotations

import torch
from torch import Tensor

from penchant.errors import ObjectiveError

LABEL_ARGUMENTS = frozenset({"score_chosen_P", "score_rejected_P", "soft_label_P"})


def soft_labels(
    bt_beta: float,
    *,
    score_chosen_P: Tensor | None = None,
    score_rejected_P: Tensor | None = None,
    soft_label_P: Tensor | None = None,
) -> Tensor:
    """p = sigmoid(bt_beta * (score_chosen - score_rejected)), or soft_label_P where it is a number.

    Args: [pairs] each; at least both scores, or the soft labels.
    Returns: [pairs] in [0, 1], float64.
    Raises ObjectiveError where a pair ends up without a label; says which pairs.
    """
    p_P = None
    if score_chosen_P is not None and score_rejected_P is not None:
        # torch's sigmoid is stable at both ends; float64, because raw votes run into the thousands.
        p_P = torch.sigmoid(bt_beta * (score_chosen_P.double() - score_rejected_P.double()))
    if soft_label_P is not None:
        given_P = soft_label_P.double()
        p_P = given_P if p_P is None else torch.where(given_P.isnan(), p_P, given_P)
    if p_P is None:
        raise ObjectiveError(
            "soft labels come from score_chosen_P and score_rejected_P, or from soft_label_P; "
            "got neither"
        )
    bad_P = ~((p_P >= 0) & (p_P <= 1))
    if bool(bad_P.any()):
        places = bad_P.nonzero().flatten().tolist()
        raise ObjectiveError(
            f"no usable label for pairs {places[:5]}{' and more' if len(places) > 5 else ''}: "
            "each needs two scores that are numbers, or a soft label in [0, 1]"
        )
    return p_P
