"""Old names whose meaning here depends on their value or on other old names.

Each function takes the value and all old keys that were given, and returns new keys with values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from penchant.errors import RecipeError

Given = Mapping[str, Any]
Values = dict[str, Any]

MAPPING = object()
"""Stands for a mapping that must be there; one that is there already stays as it is."""

LOSS_TYPES = {
    "sigmoid": "dpo",
    "hinge": "slic-dpo",
    "sft": "sft",
    "nll": "sft",
    "ipo": "ipo",
    "simpo": "simpo",
    "orpo": "orpo",
    "kto": "kto",
    "aot": "aot",
}
"""TRL's loss types whose formula is that of an objective here."""

OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw"),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"),
    "rmsprop": "rmsprop",
    "RMSprop": "rmsprop",
    "RMSProp": "rmsprop",
    "adafactor": "adafactor",
}


def number(key: str, value: Any, kind: type = float) -> Any:
    """The value where it is a number. Raises RecipeError otherwise."""
    fits = isinstance(value, int) or (kind is float and isinstance(value, float))
    if not fits or isinstance(value, bool):
        what = "integer" if kind is int else "number"
        raise RecipeError(f"{key}: given {value!r}, allowed: {what}")
    return value


def batch_size(_: Any, given: Given) -> Values:
    """Pairs per update over all micro-batches and processes together."""
    return {"training.batch_size": math.prod(_batch_factors(given).values())}


def batch_size_factors(given: Given) -> str:
    """The factors of `batch_size` in words."""
    return " x ".join(f"{value} {name}" for name, value in _batch_factors(given).items())


def _batch_factors(given: Given) -> dict[str, int]:
    """TRL's defaults are 8 per device and no accumulation."""
    per_device = given.get("per_device_train_batch_size", 8)
    accumulation = given.get("gradient_accumulation_steps", 1)
    factors = {
        "per device": number("per_device_train_batch_size", per_device, int),
        "accumulated": number("gradient_accumulation_steps", accumulation, int),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    if given.get("more") is True and given.get("resampling") is True:
        factors["tasks"] = _num_tasks(given)
    return factors


def _num_tasks(given: Given) -> int:
    """MORE counts items, each of one pair per task."""
    paths = given.get("train_data_path")
    if isinstance(paths, list):
        return len(paths)
    if "task_num" in given:
        return int(number("task_num", given["task_num"], int))
    raise RecipeError(
        "per_device_train_batch_size counts items of one pair per task here; give task_num, or "
        "instead of it training.batch_size (pairs of all tasks together)"
    )


def train_set(_: Any, given: Given) -> Values:
    """A hub data set with its configuration and split."""
    return {"data.train": _source(given, given.get("dataset_train_split"))}


def test_set(value: Any, given: Given) -> Values:
    """The evaluation split of the same hub data set."""
    return {"data.eval": _source(given, value)}


def mixer(_: Any, given: Given) -> Values:
    """alignment-handbook: {id: fraction}, splits sorted into train and test by their names.

    A file has no splits: it is for training, unless `dataset_splits` says otherwise.
    """
    mixed = given.get("dataset_mixer")
    if not isinstance(mixed, Mapping) or not mixed:
        raise RecipeError(f"dataset_mixer: given {mixed!r}, allowed: {{hub id or path: fraction}}")
    splits = _list("dataset_splits", given.get("dataset_splits", ["train", "test"]))
    configs = _list("dataset_configs", given.get("dataset_configs") or [None] * len(mixed))
    if len(configs) != len(mixed):
        raise RecipeError(f"dataset_configs has {len(configs)} entries, dataset_mixer {len(mixed)}")
    values: Values = {}
    for split in splits:
        is_test = "test" in str(split)
        for (path, fraction), config in zip(mixed.items(), configs):
            if is_test and "dataset_splits" not in given and os.path.isfile(str(path)):
                continue
            source = {"path": path, "split": split}
            source |= {} if config is None else {"config": config}
            if number("dataset_mixer", fraction) < 1 and not is_test:
                source["fraction"] = fraction
            values.setdefault("data.eval" if is_test else "data.train", []).append(source)
    return values


def mixture(value: Any, _: Given) -> Values:
    """TRL's `datasets` list and the handbook's `dataset_mixture`."""
    whole = value if isinstance(value, Mapping) else {"datasets": value}
    names = {"id": "path", "path": "path", "config": "config", "name": "config"}
    names |= {"split": "split", "weight": "fraction"}
    sources = []
    for one in _list("datasets", whole.get("datasets")):
        if not isinstance(one, Mapping) or not set(one) <= {*names, "columns"}:
            raise RecipeError(f"datasets: given {one!r}, allowed: {{path, name, split, weight}}")
        sources.append({names[k]: v for k, v in one.items() if k != "columns" and v is not None})
    values: Values = {"data.train": sources}
    if whole.get("test_split_size") is not None:
        values["data.eval_fraction"] = whole["test_split_size"]
    return values


def loss_type(value: Any, given: Given) -> Values:
    """The objective with the same formula.

    Raises RecipeError where there is none.
    """
    name = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(name, str) or name not in LOSS_TYPES:
        names = ", ".join(LOSS_TYPES)
        raise RecipeError(
            f"loss_type: given {value!r}, allowed: one of {names}; for others name an objective "
            "(objective=NAME), and for a sum with NLL set objective.sft_weight"
        )
    if name == "sigmoid" and given.get("bt_beta") is not None:
        return {"objective.name": "mmpo"}
    return {"objective.name": LOSS_TYPES[name]}


def bt_beta(value: Any, _: Given) -> Values:
    """MMPO's own key: set, it turns DPO into MMPO."""
    return {} if value is None else {"objective.name": "mmpo", "objective.bt_beta": value}


def gamma_beta_ratio(value: Any, given: Given) -> Values:
    """SimPO's margin, given there as a multiple of beta."""
    if "beta" not in given:
        raise RecipeError("gamma_beta_ratio needs beta; or give objective.gamma")
    ratio = number("gamma_beta_ratio", value)
    return {"objective.gamma": ratio * number("beta", given["beta"])}


def use_peft(value: Any, given: Given) -> Values:
    """An adapter with the given LoRA keys, or none."""
    if value is not True:
        return {"model.adapter": None}
    return {"model.adapter": MAPPING}


def adapter(field: str, value: Any, given: Given) -> Values:
    """One field of the adapter, unless `use_peft: false` says that there is none."""
    if given.get("use_peft") is False or (field == "targets" and value is None):
        return {}
    return {f"model.adapter.{field}": value}


def dtype(value: Any, _: Given) -> Values:
    """The handbook's recipes write null where they leave the number format to the default."""
    return {} if value is None else {"model.dtype": value}


def optimizer(value: Any, _: Given) -> Values:
    """The optimiser by transformers' name."""
    if not isinstance(value, str) or value not in OPTIMIZERS:
        allowed = ", ".join(OPTIMIZERS)
        raise RecipeError(f"optim: given {value!r}, allowed: one of {allowed}")
    return {"training.optimizer": OPTIMIZERS[value]}


def warmup_steps(value: Any, given: Given) -> Values:
    """0 leaves the ratio in charge; a fraction is a ratio."""
    if value == 0 and given.get("warmup_ratio"):
        return {}
    if isinstance(value, float) and 0 < value < 1:
        return {"training.warmup_ratio": value}
    return {"training.warmup_steps": value}


def every(what: str, given: Given) -> Values:
    """`eval` or `save`: strategy and steps together; transformers' default is 500 steps."""
    old = "evaluation_strategy" if "evaluation_strategy" in given else f"{what}_strategy"
    strategy = given.get(old, "steps")
    if strategy == "epoch" or (what == "eval" and strategy == "no"):
        return {f"training.{what}_steps": None}
    if strategy != "steps":
        raise RecipeError(f"{old}: given {strategy!r}, allowed: steps, epoch")
    return {f"training.{what}_steps": given.get(f"{what}_steps", 500)}


def resume(value: Any, _: Given) -> Values:
    """True means the newest checkpoint."""
    if value is None or isinstance(value, bool):
        value = "never" if value is False else "auto"
    return {"training.resume": value}


def _source(given: Given, split: Any) -> Values:
    path = given.get("dataset_name")
    if path is None:
        raise RecipeError("dataset_name is missing; or give data.train")
    config = given.get("dataset_config", given.get("dataset_config_name"))
    source = {"path": path, "config": config, "split": split}
    return {key: value for key, value in source.items() if value is not None}


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RecipeError(f"{key}: given {value!r}, allowed: a list")
    return value
