"""Overrides and YAML: what a value on the command line or in a file means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penchant.errors import MissingFileError, RecipeError
from penchant.recipe import load_recipe
from penchant.recipe.text import read_yaml
from tests.test_recipe import load
from tests.test_recipe_errors import error_of


def test_the_last_one_wins_and_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: d.jsonl\noutput_dir: o\ntraining: {seed: 1, batch_size: 8}\n")
    recipe = load_recipe("train", path, ["training.seed=2", "training.seed=3"])
    assert (recipe.training.seed, recipe.training.batch_size) == (3, 8)
    same = load_recipe("train", None, [str(path), "--training.seed", "2", "--training.seed=3"])
    assert same == recipe
    assert load_recipe("train", path, {"training.seed": 3}) == recipe


def test_a_mapping_replaces_and_a_plain_value_sets_the_main_field() -> None:
    base = {
        "model": {"path": "m", "adapter": {"r": 4}},
        "objective": {"name": "dpo", "beta": 0.5},
        "data": {"train": "d.jsonl", "max_length": 64},
        "reference": {"path": "r", "revision": "v1"},
        "output_dir": "o",
    }
    plain = ["model=n", "objective=slic-dpo", "data=e.jsonl", "reference=s"]
    recipe = load_recipe("train", base, plain)
    assert (recipe.model.path, recipe.model.adapter.r) == ("n", 4)
    assert recipe.objective == {"name": "slic-dpo", "beta": 0.5}
    assert (recipe.data.train[0].path, recipe.data.max_length) == ("e.jsonl", 64)
    assert (recipe.reference.path, recipe.reference.revision) == ("s", "v1")
    replaced = load_recipe("train", base, ["model={path: n}", "objective={name: mmpo}"])
    assert replaced.model.adapter is None
    assert replaced.objective == {"name": "mmpo"}


def test_keys_below_a_plain_value_or_a_list_of_one() -> None:
    recipe = load("model.adapter.r=4", "data.train.rows=10", "objective.beta=0.2")
    assert recipe.model.path == "m"
    assert (recipe.data.train[0].path, recipe.data.train[0].rows) == ("d.jsonl", 10)
    again = load_recipe("train", recipe.model_dump(), {"data.train.rows": 5})
    assert again.data.train[0].rows == 5
    assert "list of 2" in error_of("data.train=[a, b]", "data.train.rows=5")


def test_digits_are_text_where_only_text_is_allowed() -> None:
    recipe = load("model=2024", "data=1e5", "model.revision=37288", "output_dir=007")
    assert (recipe.model.path, recipe.data.train[0].path) == ("2024", "1e5")
    assert (recipe.model.revision, recipe.output_dir) == ("37288", "007")
    assert load("--model.revision", "true").model.revision == "true"
    assert load("model.revision=none").model.revision is None
    assert "given True, allowed: text" in error_of("--model.revision")


def test_none_unsets_what_may_be_nothing() -> None:
    recipe = load("model.adapter.r=4", "model.adapter=none", "data.eval=none", "reference=none")
    assert (recipe.model.adapter, recipe.data.eval, recipe.reference) == (None, (), None)
    assert load("training.report_to=none", "data.decontaminate=null").training.report_to == ()


def test_lists_of_sources() -> None:
    recipe = load("data.train=[a.jsonl, {path: b.jsonl, fraction: 0.5, name: bee}]")
    assert [one.path for one in recipe.data.train] == ["a.jsonl", "b.jsonl"]
    assert recipe.data.train[1].name == "bee"


def test_flags_and_dashes() -> None:
    recipe = load("--data.strict", "--model.gradient-checkpointing", "training.seed=7")
    assert recipe.data.strict
    assert recipe.model.gradient_checkpointing
    assert recipe.training.seed == 7


def test_python_overrides_take_paths_and_tuples(tmp_path: Path) -> None:
    values = {"model": tmp_path, "data.train": (tmp_path / "a", "b"), "output_dir": tmp_path / "o"}
    recipe = load_recipe("train", None, values)
    assert recipe.model.path == str(tmp_path)
    assert [one.path for one in recipe.data.train] == [str(tmp_path / "a"), "b"]


def test_a_bare_argument_is_the_folder_of_init_and_the_recipe_of_train(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("tokenizer: t\n")
    recipe = load_recipe("init", None, ["123", str(tmp_path / "r.yaml")])
    assert (recipe.output_dir, recipe.tokenizer) == ("123", "t")
    with pytest.raises(MissingFileError, match=r"no recipe file nowhere\.yaml"):
        load_recipe("train", None, ["nowhere.yaml"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'5e-7'", "5e-7"),
        ("[1, 2e-1]", [1, 0.2]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = read_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_an_exponent_without_a_dot_is_a_number_everywhere(tmp_path: Path) -> None:
    assert load("training.learning_rate=5e-7").training.learning_rate == 5e-7
    (tmp_path / "r.yaml").write_text("model: m\ndata: d\noutput_dir: o\nobjective: {beta: 1e-2}\n")
    assert load_recipe("train", tmp_path / "r.yaml").objective["beta"] == 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [", "line 2"),
        ("a: 1\na: 2", "a is given twice"),
        ("a: &x 1\nb: *x", "anchors"),
        ("a: !!python/name:os.system x", "tags"),
        ("1: a", "a key must be text"),
        ("- a", "allowed: keys with values"),
        ("a: 1\n---\nb: 2", "line 2"),
    ],
)
def test_files_that_are_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("train", tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)
    assert "r.yaml" in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\n")
    for path in (tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(RecipeError, match="cannot be read as a recipe"):
            load_recipe("train", path)
    (tmp_path / "recipe.yaml").write_text("model: m\n")
    with pytest.raises(RecipeError, match=r"a folder; its recipe is .*recipe\.yaml$"):
        load_recipe("train", tmp_path)
