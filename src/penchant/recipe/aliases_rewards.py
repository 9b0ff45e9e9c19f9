"""Old names of reward modelling: the flags of MORE's and MMPO's scripts, and TRL's of its trainer.

As in `aliases.py`, of which these tables are parts. MORE's `--more` and `--resampling` work
together: both make balanced batches, of one pair of each task per item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penchant.errors import RecipeError
from penchant.recipe.aliases_derived import Given, Values, number

POOLINGS = {"eos": "last", "last": "last", "average": "average", "max": "max"}
"""MORE's poolings. Its `last` is the token before the end of sequence; ours that token itself."""


def pooling(value: Any, _: Given) -> Values:
    """What the score head sees."""
    if not isinstance(value, str) or value not in POOLINGS:
        raise RecipeError(f"pooling_type: given {value!r}, allowed: one of {', '.join(POOLINGS)}")
    return {"pooling": POOLINGS[value]}


def more(value: Any, given: Given) -> Values:
    """Min-norm weights, or those of training on all sets together (MultiTask)."""
    balanced = _flag("more", value) and _flag("resampling", given.get("resampling", False))
    return {
        "task_weights.name": "more" if value else "uniform",
        "batches": "balanced" if balanced else "mixed",
    }


def resampling(_: Any, given: Given) -> Values:
    """So many pairs of each task per epoch; the scripts' default is 1000."""
    if not _flag("resampling", given.get("resampling", False)):
        return {"resample": "none"}
    return {"resample": number("resampling_size", given.get("resampling_size", 1000), int)}


def data_path(value: Any, given: Given) -> Values:
    """What the scripts without a set of tasks read."""
    return {} if "train_data_path" in given else {"data.train": value}


def truncation_side(value: Any, _: Given) -> Values:
    """The scripts cut the whole text; on the left that is the prompt's beginning."""
    if value not in ("left", None):
        raise RecipeError(
            f"truncation_side: given {value!r}, allowed: left; a prompt that is too long is cut "
            "first, then the response: data.truncate_prompt, data.max_prompt_length"
        )
    return {} if value is None else {"data.truncate_prompt": "keep_end"}


def soft_label_json(value: Any, given: Given) -> Values:
    """MMPO's table of soft labels: below a half the pair is swapped, or the label rescaled."""
    if value is None:
        return {}
    rescales = _flag("rescale_p", given.get("rescale_p", False))
    below = "rescale" if rescales else "swap"
    return {"data.soft_labels.path": value, "data.soft_labels.below_half": below}


def rescale_p(value: Any, given: Given) -> Values:
    """Says how `soft_label_json` is read."""
    if _flag("rescale_p", value) and given.get("soft_label_json") is None:
        raise RecipeError("rescale_p needs soft_label_json; or give data.soft_labels")
    return {}


def bt_beta(value: Any, _: Given) -> Values:
    """MMPO's reward model: soft labels from the score gap."""
    if value is None:
        return {}
    return {"objective.name": "bradley-terry-soft", "objective.bt_beta": value}


def _if_given(key: str) -> Callable[[Any, Given], Values]:
    return lambda value, _: {} if value is None else {key: value}


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RecipeError(f"{key}: given {value!r}, allowed: true | false")
    return value


DERIVED: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "pooling_type": pooling,
    "more": more,
    **dict.fromkeys(("resampling", "resampling_size"), resampling),
    "alpha": _if_given("task_weights.alpha"),
    "normalize": _if_given("task_weights.normalise"),
    "train_data_path": _if_given("data.train"),
    "eval_data_path": _if_given("data.eval"),
    "data_path": data_path,
    "truncation_side": truncation_side,
    "soft_label_json": soft_label_json,
    "rescale_p": rescale_p,
    "filter_threshold": _if_given("data.min_score_gap"),
    "center_rewards_coefficient": _if_given("objective.centring"),
}

OF_REWARDS: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {"bt_beta": bt_beta}
"""Names that mean another thing where a reward model is trained."""

_UNREAD = "the released code reads it nowhere"
NEEDLESS = {
    **dict.fromkeys(("reward_domain", "data_dir", "data_prefix", "run_more"), _UNREAD),
    **dict.fromkeys(("calibration", "active_module_name", "contrast_loss_coeff"), _UNREAD),
    **dict.fromkeys(("pair_data_augmentation", "max_response_num"), _UNREAD),
    "model_type": "the checkpoint's config says it",
    "tokenizer_path": "the tokenizer lies with the model",
    "padding_side": "padding never changes a score",
    "task_num": "every entry of data.train is a task",
    "micro_batch_size": "the engine chooses attention, packing and micro-batches itself",
    "eval_at_start": "data.eval is evaluated before training, too",
    "lm_score_thresh": "the language-model term is of each prompt's best response",
    "sep_token": "prompt and response are kept apart",
    "pad_labels_with_ignore": "responses are marked by masks",
    "ignore_token_id": "responses are marked by masks",
}

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "reweight": ((True,), "weigh tasks by task_weights={name: fixed, weights: {TASK: NUMBER}}"),
    "shuffle": ((True,), "leave it out; rows are shuffled by training.seed"),
    "debug_mode": ((False,), "leave it out; try a few rows with data.train={path: ..., rows: 20}"),
    "valid_data_size": ((0,), "hold rows out with data.eval_fraction"),
    "only_predict_answer": ((True,), "leave it out; prompts are never scored"),
    "lm_loss_coeff": (
        (0, 0.0),
        "set objective.lm_weight, by which the NLL of each prompt's best response counts",
    ),
}
