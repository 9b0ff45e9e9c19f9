"""Old names: what TRL's and alignment-handbook's keys become, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penchant.errors import RecipeError
from penchant.recipe import dump_recipe, keys_of, load_recipe, recipe_class, resolve
from penchant.recipe.aliases import DERIVED, NEEDLESS, ONLY, REFUSED, RENAMED, old_names
from tests.test_recipe import load, value_at
from tests.test_recipe_errors import error_of


def notes_of(*arguments: str) -> tuple[Any, list[str]]:
    """The recipe, and the notes that came with it."""
    notes: list[str] = []
    base = ["model=m", "data=d.jsonl", "output_dir=o"]
    return load_recipe("train", None, [*base, *arguments], note=notes.append), notes


@pytest.mark.parametrize(
    ("argument", "path", "value"),
    [
        ("model_name_or_path=x", "model.path", "x"),
        ("model_revision=v1", "model.revision", "v1"),
        ("torch_dtype=bfloat16", "model.dtype", "bfloat16"),
        ("torch_dtype=null", "model.dtype", "auto"),
        ("dtype=bfloat16", "model.dtype", "bfloat16"),
        ("trust_remote_code=true", "model.trust_remote_code", True),
        ("gradient_checkpointing=true", "model.gradient_checkpointing", True),
        ("load_in_4bit=true", "model.quantization", "4bit"),
        ("bf16=true", "model.dtype", "bfloat16"),
        ("bf16=false", "model.dtype", "auto"),
        ("ref_model_name_or_path=r", "reference.path", "r"),
        ("lora_r=4", "model.adapter.r", 4),
        ("lora_rank=4", "model.adapter.r", 4),
        ("lora_alpha=4", "model.adapter.alpha", 4),
        ("lora_dropout=0", "model.adapter.dropout", 0),
        ("lora_target_modules=[q, v]", "model.adapter.targets", ("q", "v")),
        ("beta=0.3", "objective.beta", 0.3),
        ("label_smoothing=0.1", "objective.label_smoothing", 0.1),
        ("simpo_gamma=0.5", "objective.gamma", 0.5),
        ("rpo_alpha=1.0", "objective.sft_weight", 1.0),
        ("loss_type=sigmoid", "objective.name", "dpo"),
        ("loss_type=hinge", "objective.name", "slic-dpo"),
        ("loss_type=[ipo]", "objective.name", "ipo"),
        ("bt_beta=2.2", "objective.name", "mmpo"),
        ("dataset_name=a/b", "data.train.path", "a/b"),
        ("max_length=64", "data.max_length", 64),
        ("max_prompt_length=64", "data.max_prompt_length", 64),
        ("truncation_mode=keep_start", "data.truncate_prompt", "keep_start"),
        ("validation_split_percentage=2", "data.eval_fraction", 0.02),
        ("learning_rate=1e-5", "training.learning_rate", 1e-5),
        ("num_train_epochs=3", "training.num_train_epochs", 3),
        ("max_steps=7", "training.max_steps", 7),
        ("max_steps=-1", "training.max_steps", None),
        ("lr_scheduler_type=linear", "training.lr_scheduler_type", "linear"),
        ("warmup_ratio=0.3", "training.warmup_ratio", 0.3),
        ("warmup_steps=100", "training.warmup_steps", 100),
        ("warmup_steps=0.25", "training.warmup_ratio", 0.25),
        ("weight_decay=0.05", "training.weight_decay", 0.05),
        ("max_grad_norm=0.5", "training.max_grad_norm", 0.5),
        ("optim=adamw_torch", "training.optimizer", "adamw"),
        ("optim=paged_adamw_8bit", "training.optimizer", "adamw_8bit"),
        ("optimizer_type=rmsprop", "training.optimizer", "rmsprop"),
        ("seed=7", "training.seed", 7),
        ("save_steps=950", "training.save_steps", 950),
        ("save_strategy=epoch", "training.save_steps", None),
        ("save_strategy=steps", "training.save_steps", 500),
        ("save_total_limit=3", "training.save_total_limit", 3),
        ("report_to=[wandb, tensorboard]", "training.report_to", ("wandb", "tensorboard")),
        ("report_to=none", "training.report_to", ()),
        ("resume_from_checkpoint=false", "training.resume", "never"),
        ("resume_from_checkpoint=true", "training.resume", "auto"),
        ("resume_from_checkpoint=o/checkpoint-5", "training.resume", "o/checkpoint-5"),
        ("disable_dropout=false", "training.base_dropout", True),
        ("use_cpu=true", "training.device", "cpu"),
    ],
)
def test_an_old_name_becomes_the_new_one_with_a_note(argument: str, path: str, value: Any) -> None:
    for arguments in ([argument], [f"--{argument}"], f"--{argument}".split("=", 1)):
        recipe, notes = notes_of(*arguments)
        assert value_at(recipe, path) == value
        assert len(notes) == 1
        assert notes[0].startswith(f"{argument.partition('=')[0]}=")


def test_batch_size_is_per_device_times_accumulation_times_processes(monkeypatch: Any) -> None:
    names = ("per_device_train_batch_size=2", "gradient_accumulation_steps=16")
    recipe, notes = notes_of(*names)
    assert recipe.training.batch_size == 32
    assert len(notes) == 1
    assert "training.batch_size=32 (2 per device x 16 accumulated x 1 processes)" in notes[0]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert notes_of(*reversed(names))[0].training.batch_size == 128
    assert notes_of("gradient_accumulation_steps=2")[0].training.batch_size == 64
    assert "allowed: integer" in error_of("per_device_train_batch_size=two")


def test_use_peft_decides_whether_there_is_an_adapter() -> None:
    assert load("lora_r=8", "use_peft=true").model.adapter.r == 8
    assert load("use_peft=true").model.adapter.r == 16
    assert load("model.adapter.r=64", "use_peft=true").model.adapter.r == 64
    assert load("use_peft=false", "lora_r=8", "lora_alpha=8").model.adapter is None


def test_values_that_work_together() -> None:
    assert load("loss_type=sigmoid", "bt_beta=2.2").objective == {"name": "mmpo", "bt_beta": 2.2}
    assert load("bt_beta=2.2", "loss_type=sigmoid").objective == {"name": "mmpo", "bt_beta": 2.2}
    assert load("bt_beta=null", "beta=0.1").objective == {"name": "dpo", "beta": 0.1}
    simpo = load("loss_type=simpo", "beta=2.0", "gamma_beta_ratio=0.5").objective
    assert simpo == {"name": "simpo", "beta": 2.0, "gamma": 1.0}
    assert load("warmup_steps=0", "warmup_ratio=0.2").training.warmup_steps is None
    assert load("warmup_steps=0").training.warmup_steps == 0
    evaluated = load("data.eval=e.jsonl", "eval_strategy=steps", "eval_steps=100")
    assert evaluated.training.eval_steps == 100
    assert load("eval_strategy=no", "eval_steps=100").training.eval_steps is None


def test_data_sets_of_the_handbook() -> None:
    mixer = {"dataset_mixer": {"a/b": 1.0, "c/d": 0.5}, "dataset_splits": ["train_p", "test_p"]}
    recipe = load_recipe("train", {"model": "m", "output_dir": "o", **mixer})
    train = [(one.path, one.split, one.fraction) for one in recipe.data.train]
    assert train == [("a/b", "train_p", None), ("c/d", "train_p", 0.5)]
    assert [(one.path, one.split) for one in recipe.data.eval] == [
        ("a/b", "test_p"),
        ("c/d", "test_p"),
    ]
    listed = {"datasets": [{"id": "a/b", "config": "x", "split": "s", "weight": 0.5}]}
    mixture = {"dataset_mixture": {**listed, "test_split_size": 0.1}}
    recipe = load_recipe("train", {"model": "m", "output_dir": "o", **mixture})
    source = recipe.data.train[0]
    assert (source.path, source.config, source.split, source.fraction) == ("a/b", "x", "s", 0.5)
    assert recipe.data.eval_fraction == 0.1
    hub = ["dataset_name=a/b", "dataset_config=x", "dataset_test_split=test"]
    recipe = load(*hub, "dataset_train_split=train")
    assert (recipe.data.train[0].split, recipe.data.eval[0].split) == ("train", "test")
    assert recipe.data.eval[0].config == "x"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("loss_type=exo_pair", "loss_type: given 'exo_pair', allowed: one of sigmoid, hinge"),
        ("loss_type=[sigmoid, sft]", "objective.sft_weight"),
        ("loss_type=3", "loss_type: given 3"),
        ("max_completion_length=64", "use data.max_length"),
        ("optim=lion_32bit", "optim: given 'lion_32bit', allowed: one of adamw_torch"),
        ("adam_beta1=0.8", "adam_beta1: given 0.8"),
        ("fp16=true", "model.dtype=bfloat16"),
        ("torch_dtype=float16", "model.dtype: given 'float16', allowed: auto | float32 | bfloat16"),
        ("push_to_hub=true", "hf upload"),
        ("deepspeed=ds.json", "accelerate launch"),
        ("gamma_beta_ratio=0.5", "gamma_beta_ratio needs beta"),
        ("dataset_splits=[train]", "dataset_mixer: given None"),
        ("dataset_mixer=[a]", "dataset_mixer: given ['a']"),
        ("dataset_mixer={a: big}", "dataset_mixer: given 'big', allowed: number"),
        ("datasets=[{a: b}]", "datasets: given {'a': 'b'}"),
        ("dataset_test_split=test", "dataset_name is missing"),
        ("save_strategy=best", "save_strategy: given 'best', allowed: steps, epoch"),
        ("lora_r=x", "model.adapter.r: given 'x', allowed: integer >= 1"),
        ("resume_from_checkpoint=[1]", "training.resume: given [1], allowed: text"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_do(argument: str, message: str) -> None:
    assert message in error_of(argument)


def test_names_without_effect_are_accepted_aloud() -> None:
    recipe, notes = notes_of("attn_implementation=sdpa", "adam_beta2=0.999", "do_eval=true")
    assert recipe == load()
    assert len(notes) == 3
    assert "the engine chooses" in notes[0]


def test_an_old_name_for_something_this_command_lacks() -> None:
    assert "objective.beta" in error_of("beta=0.1", command="sft")
    assert load("seed=7", command="init").seed == 7, "init has a key of that name itself"


def test_tables_do_not_overlap_and_point_at_keys_that_exist() -> None:
    tables = (RENAMED, DERIVED, NEEDLESS, ONLY, REFUSED)
    assert sum(map(len, tables)) == len(set().union(*tables))
    known = {**keys_of(recipe_class("train")), **keys_of(recipe_class("sft"))}
    for old, new in RENAMED.items():
        assert new in known or new.startswith("objective."), old
        assert old not in known
    assert set(old_names()).isdisjoint(REFUSED)


def test_a_whole_recipe_of_the_handbook(tmp_path: Path) -> None:
    text = """
        model_name_or_path: kykim0/gemma-2b-ultrachat-sft
        torch_dtype: auto
        attn_implementation: flash_attention_2
        dataset_mixer: {allenai/ultrafeedback_binarized_cleaned: 1.0}
        dataset_splits: [train_prefs, test_prefs]
        preprocessing_num_workers: 12
        bf16: true
        beta: 0.01
        bt_beta: 2.2
        do_eval: true
        evaluation_strategy: steps
        eval_steps: 100
        gradient_accumulation_steps: 32
        gradient_checkpointing: true
        gradient_checkpointing_kwargs: {use_reentrant: false}
        learning_rate: 1.0e-5
        log_level: info
        logging_steps: 10
        lr_scheduler_type: cosine
        max_length: 1024
        max_prompt_length: 512
        num_train_epochs: 3
        optim: adamw_torch
        output_dir: data/gemma-2b
        per_device_train_batch_size: 1
        per_device_eval_batch_size: 8
        push_to_hub: false
        save_strategy: steps
        save_steps: 950
        save_total_limit: 3
        seed: 42
        warmup_ratio: 0.3
    """
    (tmp_path / "old.yaml").write_text("\n".join(line.strip() for line in text.splitlines()))
    recipe = resolve(load_recipe("train", tmp_path / "old.yaml"))
    assert recipe.objective == {"name": "mmpo", "beta": 0.01, "bt_beta": 2.2}
    assert recipe.training.batch_size == 32
    (tmp_path / "new.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("train", tmp_path / "new.yaml") == recipe


def test_notes_go_to_stderr_of_the_first_process(capsys: Any, monkeypatch: Any) -> None:
    load("beta=0.1")
    assert capsys.readouterr().err == "note: beta=0.1 became objective.beta=0.1\n"
    monkeypatch.setenv("RANK", "1")
    load("beta=0.1")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(RecipeError):
        load("beta=[")


def test_a_file_in_the_mixer_has_no_test_split(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("{}", encoding="utf-8")
    recipe, _ = notes_of(f"dataset_mixer={{{file}: 0.5, a/b: 1.0}}")
    assert [one.path for one in recipe.data.train] == [str(file), "a/b"]
    assert [one.path for one in recipe.data.eval] == ["a/b"]


def test_one_file_under_two_splits_is_still_one_file(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("{}", encoding="utf-8")
    told = error_of(f"dataset_mixer={{{file}: 0.5}}", "dataset_splits=[train, test]")
    assert f"data.eval is also in data.train ({file.resolve()})" in told


def reward_of(*arguments: str) -> tuple[Any, list[str]]:
    """A reward recipe, and the notes that came with it."""
    notes: list[str] = []
    base = ["model=m", "output_dir=o"]
    return load_recipe("reward", None, [*base, *arguments], note=notes.append), notes


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["pooling_type=eos"], "pooling", "last"),
        (["pooling_type=average"], "pooling", "average"),
        (["more=true", "alpha=0.99"], "task_weights.alpha", 0.99),
        (["more=true", "normalize=loss+"], "task_weights.normalise", "loss+"),
        (["more=true"], "task_weights.name", "more"),
        (["more=true"], "batches", "mixed"),
        (["more=true", "resampling=true"], "batches", "balanced"),
        (["more=false", "resampling=true"], "batches", "mixed"),
        (["more=false", "resampling=true"], "task_weights.name", "uniform"),
        (["resampling=true"], "resample", 1000),
        (["resampling_size=40000", "resampling=true"], "resample", 40000),
        (["resampling_size=40000"], "resample", "none"),
        (["truncation_side=left"], "data.truncate_prompt", "keep_end"),
        (["bt_beta=2.2"], "objective.name", "bradley-terry-soft"),
        (["bt_beta=2.2"], "objective.bt_beta", 2.2),
        (["bt_beta=null"], "objective.name", "bradley-terry"),
        (["center_rewards_coefficient=0.01"], "objective.centring", 0.01),
        (["soft_label_json=p.json"], "data.soft_labels.below_half", "swap"),
        (["soft_label_json=p.json", "rescale_p=true"], "data.soft_labels.below_half", "rescale"),
        (["filter_threshold=0.5"], "data.min_score_gap", 0.5),
    ],
)
def test_flags_of_more_and_mmpo(arguments: list[str], path: str, value: Any) -> None:
    recipe, notes = reward_of("data=d.jsonl", *arguments)
    assert value_at(recipe, path) == value
    said = " ".join(notes)
    assert all(argument.partition("=")[0] + "=" in said for argument in arguments)


def test_the_released_commands_of_more(monkeypatch: Any) -> None:
    """Five sets, an item of one pair of each on eight devices: 80 pairs per update."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    sets = "[helpful.json, harmless.json, oaast1.json, webgpt.json, summ.json]"
    common = f"""
        --model_type pythia --data_dir data --train_data_path {sets.replace(" ", "")}
        --eval_data_path [helpful.test.json] --reward_domain normal --pooling_type last
        --padding_side right --truncation_side left --max_length 512 --task_num 5
        --gradient_accumulation_steps 2 --num_train_epochs 1 --learning_rate 1e-6
        --eval_at_start False --shuffle True --debug_mode False --valid_data_size 0
        --lm_loss_coeff 0 --contrast_loss_coeff 0 --lm_score_thresh 0.85 --only_predict_answer True
        --resampling True --resampling_size 40000
    """.split()
    recipe, _ = reward_of(*common, "--per_device_train_batch_size", "1", "--more", "True",
                          "--normalize", "l2", "--alpha", "0.99", "--reweight", "True")  # fmt: skip
    assert [one.path for one in recipe.data.train] == sets[1:-1].split(", ")
    weights = recipe.task_weights
    assert (weights.name, weights.alpha, weights.normalise) == ("more", 0.99, "l2")
    assert (recipe.batches, recipe.resample, recipe.training.batch_size) == ("balanced", 40000, 80)
    multitask, _ = reward_of(*common, "--per_device_train_batch_size", "5", "--more", "False")
    assert multitask.task_weights.name == "uniform" and multitask.batches == "mixed"
    assert multitask.training.batch_size == 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pooling_type=mean"], "pooling_type: given 'mean', allowed: one of eos, last"),
        (["more=1"], "more: given 1, allowed: true | false"),
        (["resampling=true", "resampling_size=x"], "resampling_size: given 'x', allowed: integer"),
        (["truncation_side=right"], "truncation_side: given 'right', allowed: left"),
        (["reweight=false"], "reweight: given False"),
        (["shuffle=false"], "rows are shuffled by training.seed"),
        (["lm_loss_coeff=0.1"], "set objective.lm_weight"),
        (["rescale_p=true"], "rescale_p needs soft_label_json"),
        (["alpha=0.5"], "task_weights.alpha plays no part in uniform"),
        (["more=true", "resampling=true", "gradient_accumulation_steps=2"], "give task_num"),
    ],
)
def test_flags_that_cannot_be_meant_say_what_to_do(arguments: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        reward_of("data=d.jsonl", *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_policys_soft_labels_stay_a_policys() -> None:
    """`penchant data` and `penchant train` read MMPO's recipes of a policy."""
    assert load("bt_beta=2.2").objective == {"name": "mmpo", "bt_beta": 2.2}
    for command in ("data", "explain"):
        given = {"model": "m", "data": "d.jsonl", "bt_beta": 2.2, "beta": 0.1}
        given |= {"row": 1} if command == "explain" else {}
        assert load_recipe(command, given).objective["name"] == "mmpo"
    with pytest.raises(RecipeError, match=r"alpha means task_weights\.alpha, which this command"):
        load("alpha=0.5")
