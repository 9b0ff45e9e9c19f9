"""Old names: the keys of TRL, alignment-handbook and their kin, and what they are called here.

Each is renamed, worked out together with others (`aliases_derived.py`, `aliases_rewards.py`),
accepted as needless with a reason, or refused with what to do. None is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from penchant.errors import RecipeError
from penchant.recipe import aliases_derived as derived
from penchant.recipe import aliases_rewards as rewards

RENAMED = {
    "model_name_or_path": "model.path",
    "model_revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "ref_model": "reference.path",
    "ref_model_name_or_path": "reference.path",
    "ref_model_revision": "reference.revision",
    "beta": "objective.beta",
    "label_smoothing": "objective.label_smoothing",
    "simpo_gamma": "objective.gamma",
    "rpo_alpha": "objective.sft_weight",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "truncation_mode": "data.truncate_prompt",
    "chat_template": "data.chat_template",
    "chat_template_path": "data.chat_template",
    "learning_rate": "training.learning_rate",
    "num_train_epochs": "training.num_train_epochs",
    "lr_scheduler_type": "training.lr_scheduler_type",
    "warmup_ratio": "training.warmup_ratio",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "seed": "training.seed",
    "save_total_limit": "training.save_total_limit",
    "load_best_model_at_end": "training.keep_best",
    "logging_steps": "training.logging_steps",
    "report_to": "training.report_to",
    "torch_compile": "training.compile",
}

DERIVED: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps"), derived.batch_size
    ),
    **dict.fromkeys(
        ("dataset_name", "dataset_config", "dataset_config_name", "dataset_train_split"),
        derived.train_set,
    ),
    "dataset_test_split": derived.test_set,
    "dataset_mixer": derived.mixer,
    "dataset_splits": derived.mixer,
    "dataset_configs": derived.mixer,
    "dataset_mixture": derived.mixture,
    "datasets": derived.mixture,
    "validation_split_percentage": lambda value, _: {
        "data.eval_fraction": derived.number("validation_split_percentage", value) / 100
    },
    "loss_type": derived.loss_type,
    "bt_beta": derived.bt_beta,
    "gamma_beta_ratio": derived.gamma_beta_ratio,
    "use_peft": derived.use_peft,
    "lora_all_linear": lambda value, given: (
        derived.adapter("targets", "all-linear", given) if value else {}
    ),
    "lora_r": partial(derived.adapter, "r"),
    "lora_rank": partial(derived.adapter, "r"),
    "lora_alpha": partial(derived.adapter, "alpha"),
    "lora_dropout": partial(derived.adapter, "dropout"),
    "lora_target_modules": partial(derived.adapter, "targets"),
    "load_in_4bit": lambda value, _: {"model.quantization": "4bit"} if value else {},
    "load_in_8bit": lambda value, _: {"model.quantization": "8bit"} if value else {},
    **dict.fromkeys(("torch_dtype", "dtype"), derived.dtype),
    "bf16": lambda value, _: {"model.dtype": "bfloat16"} if value else {},
    "disable_dropout": lambda value, _: {"training.base_dropout": not value},
    "use_cpu": lambda value, _: {"training.device": "cpu"} if value else {},
    "no_cuda": lambda value, _: {"training.device": "cpu"} if value else {},
    "use_habana": lambda value, _: {"training.device": "hpu"} if value else {},
    "assistant_only_loss": lambda value, _: {"sft.train_on": "all"} if value else {},
    "optim": derived.optimizer,
    "optimizer_type": derived.optimizer,
    "max_steps": lambda value, _: {"training.max_steps": None if value == -1 else value},
    "warmup_steps": derived.warmup_steps,
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "eval_steps"),
        lambda _, given: derived.every("eval", given),
    ),
    **dict.fromkeys(("save_strategy", "save_steps"), lambda _, given: derived.every("save", given)),
    "resume_from_checkpoint": derived.resume,
    **rewards.DERIVED,
}

_ENGINE = "the engine chooses attention, packing and micro-batches itself"
_FASTER = "it never changed the result"
NEEDLESS = {
    **dict.fromkeys(
        ("attn_implementation", "use_flash_attention_2", "packing", "padding_free", "pad_max"),
        _ENGINE,
    ),
    **dict.fromkeys(
        ("per_device_eval_batch_size", "eval_accumulation_steps", "pad_to_multiple_of"), _ENGINE
    ),
    **dict.fromkeys(("group_by_length", "use_liger_kernel", "use_reentrant"), _ENGINE),
    **dict.fromkeys(
        ("dataset_num_proc", "preprocessing_num_workers", "dataloader_num_workers", "tf32"), _FASTER
    ),
    **dict.fromkeys(("dataloader_pin_memory", "dataloader_prefetch_factor"), _FASTER),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "ddp_find_unused_parameters"), _FASTER),
    "remove_unused_columns": "columns that nobody asks for are left out",
    "precompute_ref_log_probs": "reference log-probabilities are always stored and reused",
    "do_train": "this command trains",
    "do_eval": "evaluation follows data.eval",
    "logging_first_step": "the first update is always logged",
    "logging_strategy": "logging follows training.logging_steps",
    "logging_dir": "logs lie in output_dir",
    "run_name": "a run is named by output_dir",
    "log_level": "it concerns messages only",
    "disable_tqdm": "it concerns messages only",
    "greater_is_better": "the best checkpoint is the one with the lowest eval_loss",
    "hub_model_id": "nothing is uploaded",
    "hub_strategy": "nothing is uploaded",
    "lora_task_type": "it is always CAUSAL_LM",
    "label_pad_token_id": "responses are marked by masks",
    "padding_value": "responses are marked by masks",
    "bnb_4bit_compute_dtype": "the computation follows model.dtype",
    **rewards.NEEDLESS,
}

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "fp16": ((False,), "train in bfloat16: model.dtype=bfloat16"),
    "push_to_hub": ((False,), "upload the finished folder with `hf upload`"),
    "overwrite_output_dir": ((False,), "delete the folder or give another output_dir"),
    "reference_free": ((False,), "name an objective without a reference"),
    "sync_ref_model": ((False,), "the reference stays as it is; leave it out"),
    "use_weighting": ((False,), "leave it out; token weights: objective.token_weights"),
    "generate_during_eval": ((False,), "leave it out"),
    "streaming": ((False,), "leave it out; rows are read whole"),
    "completion_only_loss": ((True, None), "prompts are never scored; leave it out"),
    "use_rslora": ((False,), "leave it out; set model.adapter.alpha"),
    "use_dora": ((False,), "leave it out; adapters are LoRA"),
    "bnb_4bit_quant_type": (("nf4",), "leave it out; 4bit is nf4"),
    "use_bnb_nested_quant": ((False,), "leave it out"),
    "lora_modules_to_save": ((None, ()), "name the layers in model.adapter.targets"),
    "adam_beta1": ((0.9,), "leave it out; adamw runs with 0.9, 0.999, 1e-8"),
    "adam_beta2": ((0.999,), "leave it out; adamw runs with 0.9, 0.999, 1e-8"),
    "adam_epsilon": ((1e-8,), "leave it out; adamw runs with 0.9, 0.999, 1e-8"),
    "lr_scheduler_kwargs": ((None, {}), "leave it out"),
    "f_divergence_type": (("reverse_kl", "FDivergenceType.REVERSE_KL"), "leave it out"),
    "ld_alpha": ((None,), "leave it out"),
    "loss_weights": ((None,), "leave it out; a weighted NLL term is objective.sft_weight"),
    "metric_for_best_model": (("eval_loss", "loss"), "leave it out; eval_loss decides"),
    "neftune_noise_alpha": ((None,), "leave it out"),
    "average_log_prob": ((False,), "name a length-normalised objective"),
    **rewards.ONLY,
}
"""Values that say what happens anyway; any other is refused, with what to do."""

REFUSED = {
    "max_completion_length": "use data.max_length (prompt + response) and data.max_prompt_length",
    "max_target_length": "use data.max_length (prompt + response) and data.max_prompt_length",
    "tokenizer_name_or_path": "the tokenizer lies with the model",
    "tokenizer_name": "the tokenizer lies with the model",
    "deepspeed": "FSDP2 splits weights: `accelerate launch` with configs/accelerate/fsdp2.yaml",
    "fsdp": "start with `accelerate launch --config_file FILE -m penchant.cli`",
    "fsdp_config": "start with `accelerate launch --config_file FILE -m penchant.cli`",
    "use_auth_token": "log in with `hf auth login` or set HF_TOKEN",
    "hub_token": "log in with `hf auth login` or set HF_TOKEN",
    "cache_dir": "set HF_HOME",
}


@dataclass(frozen=True)
class Translation:
    """What an old key became: new keys with values, and the same in words."""

    values: dict[str, Any]
    became: str


def is_old_name(key: str) -> bool:
    """Whether a key is one of the old names."""
    return any(key in table for table in (RENAMED, DERIVED, NEEDLESS, ONLY, REFUSED))


def old_names() -> list[str]:
    """Every old name that may stand in a recipe."""
    return [*RENAMED, *DERIVED, *NEEDLESS, *ONLY]


def translate(
    key: str, value: Any, given: Mapping[str, Any], *, of_rewards: bool = False
) -> Translation:
    """What an old key means here.

    Args
        given: all old keys, since some work together.
        of_rewards: whether a reward model is what is trained.
    Raises RecipeError where it has no meaning here, saying what to do.
    """
    if key in REFUSED:
        raise RecipeError(f"{key} is not used here: {REFUSED[key]}")
    if key in ONLY:
        return _only(key, value)
    if key in NEEDLESS:
        return Translation({}, f"is not needed: {NEEDLESS[key]}")
    if key in RENAMED:
        values = {RENAMED[key]: value}
    else:
        derive = (rewards.OF_REWARDS if of_rewards else {}).get(key, DERIVED[key])
        values = derive(value, given)
    became = ", ".join(f"{new}={shown(one)}" for new, one in values.items())
    if "training.batch_size" in values:
        became += f" ({derived.batch_size_factors(given)})"
    return Translation(values, f"became {became}" if became else "needs no key")


def shown(value: Any) -> str:
    """A value as it may be written in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return "{...}" if value is derived.MAPPING else str(value)


def _only(key: str, value: Any) -> Translation:
    allowed, instead = ONLY[key]
    same = tuple(value) if isinstance(value, list) else value
    if not any(same == one and type(same) is type(one) for one in allowed):
        raise RecipeError(f"{key}: given {value!r}, which is not used here: {instead}")
    return Translation({}, "is what happens anyway")
