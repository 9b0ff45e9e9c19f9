"""What is refused, and in which words: always one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.errors import PenchantError, RecipeError
from penchant.recipe import load_recipe
from tests.test_recipe import load


def error_of(*arguments: str, command: str = "train") -> str:
    """The one line that a recipe of the least keys and the given ones is refused with."""
    with pytest.raises(PenchantError) as caught:
        load(*arguments, command=command)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainng.seed=1", "unknown key trainng; did you mean training?"),
        ("model.revison=x", "unknown key model.revison; did you mean model.revision?"),
        ("data.train={pth: x}", "unknown key data.train.pth; did you mean data.train.path?"),
        ("learning_rat=1", "unknown key learning_rat; did you mean learning_rate?"),
        ("batch_size=8", "unknown key batch_size; did you mean training.batch_size?"),
        ("qqqqqq=8", "unknown key qqqqqq; see --help for all keys"),
        ("lr=1", "unknown key lr; did you mean training.learning_rate?"),
        ("training.lr=1", "unknown key training.lr; did you mean training.learning_rate?"),
        ("training.epochs=1", "did you mean training.num_train_epochs?"),
        ("training.max_length=9", "unknown key training.max_length; did you mean data.max_length?"),
        ("data.path=x", "unknown key data.path; did you mean data.train.path?"),
        ("training.qqqqqq=8", "unknown key training.qqqqqq; see --help for all keys"),
        ("training.batch_size=0", "training.batch_size: given 0, allowed: integer >= 1"),
        ("training.batch_size='64'", "training.batch_size: given '64', allowed: integer >= 1"),
        ("training.batch_size=1.5", "training.batch_size: given 1.5, allowed: integer >= 1"),
        ("training.batch_size=true", "training.batch_size: given True, allowed: integer >= 1"),
        ("data.strict=yes", "data.strict: given 'yes', allowed: true | false"),
        ("data.strict=1", "data.strict: given 1, allowed: true | false"),
        ("data.overlong=crop", "data.overlong: given 'crop', allowed: cut | drop | stop"),
        ("training.token_budget=0", "given 0, allowed: auto | integer >= 1"),
        ("training.warmup_ratio=.nan", "training.warmup_ratio: given nan, allowed: number"),
        ("training.learning_rate=.inf", "training.learning_rate: given inf, allowed: number"),
        ("training.seed={a: 1}", "training.seed: given {'a': 1}, allowed: integer"),
        ("model=[a]", "model: given ['a'], allowed: path | {path, "),
        ("model.adapter=8", "model.adapter: given 8, allowed: {r, alpha, dropout, targets}"),
        ("objective.name=3", "objective.name: given 3, allowed: text"),
        ("output_dir=''", "output_dir: given ''"),
        ("data.max_prompt_length=1025", "data.max_prompt_length 1025 is above data.max_length"),
        ("data.eval=d.jsonl", "data.eval is also in data.train (d.jsonl)"),
        ("training.keep_best=true", "training.keep_best needs data.eval"),
        ("training.eval_steps=5", "training.eval_steps needs data.eval"),
        ("data.train={path: a, rows: 1, fraction: .5}", "fraction 0.5 and rows 1"),
        ("model.path.x=1", "model.path: given 'm', but a key below it needs a mapping"),
        ("data..x=1", "a part between dots is empty"),
        ("-x", "given '-x', allowed: key=value or --key value"),
        ("a.yaml", "no recipe file a.yaml"),
        ("training.seed=[", "training.seed line 1"),
    ],
)
def test_bad_input_is_one_line(argument: str, message: str) -> None:
    assert message in error_of(argument)


def test_missing_keys_are_named() -> None:
    with pytest.raises(RecipeError, match=r"^data is missing"):
        load_recipe("train", None, ["model=m", "output_dir=o"])
    with pytest.raises(RecipeError, match=r"^output_dir is missing"):
        load_recipe("train", None, ["model=m", "data=d"])


def test_two_recipe_files_are_refused() -> None:
    assert "one recipe file" in error_of("a.yaml", "b.yaml")


def test_eval_equal_to_train_is_seen_through_another_spelling(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(file)
    with pytest.raises(RecipeError, match=r"data\.eval is also in data\.train"):
        load(f"data.train={file}", f"data.eval={tmp_path / 'link.jsonl'}")
    with pytest.raises(RecipeError, match=r"data\.eval is also in data\.train"):
        load("data.train=a/b:c:train", "data.eval=a/b:c:train")
    load("data.train={path: a/b, split: train}", "data.eval={path: a/b, split: test}")


def test_heads_must_divide() -> None:
    assert "num_heads 3" in error_of("num_heads=3", command="init")
    assert "num_key_value_heads 3" in error_of("num_key_value_heads=3", command="init")


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().training.seed = 3
