"""Whatever is typed, only a PenchantError of one line comes out, or a recipe that round-trips."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.errors import PenchantError
from penchant.recipe import dump_recipe, keys_of, load_recipe, recipe_class, resolve
from penchant.recipe.aliases import REFUSED, old_names
from penchant.recipe.text import read_yaml, write_yaml

BASE = {"model": "m", "data": "d.jsonl", "output_dir": "o"}
KEYS = [*keys_of(recipe_class("train")), *old_names(), *REFUSED, "objective.beta", "data.train.0"]
ODD = """none|null||[]|{}|1|-1|1e400|.nan|.inf|true|[a, {b: c}]|{path: p}|{name: x}|[[|&a [*a]
!!int x|{a: 1, a: 2}|[1]|{a/b: 0.5}|[{path: a}]|0x|0o9
- a|a: b: c|'|"\\0"|? [x]|5e-7|010|yes|2024-01-01"""
VALUES = st.one_of(
    st.text(max_size=20), st.sampled_from([*ODD.replace("\n", "|").split("|"), "9" * 5000])
)


def _check(arguments: list[str] | dict[str, Any], source: Any = BASE) -> None:
    try:
        recipe = load_recipe("train", source, arguments, note=lambda _: None)
    except PenchantError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        return
    recipe = resolve(recipe)
    assert load_recipe("train", read_yaml(dump_recipe(recipe), "dump")) == recipe


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=3))
def test_known_keys_with_any_values(items: list[tuple[str, str]]) -> None:
    _check([f"{key}={value}" for key, value in items])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(KEYS).map("--{}".format))))
def test_any_arguments(arguments: list[str]) -> None:
    _check(arguments)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3))
def test_any_python_values(overrides: dict[str, Any]) -> None:
    try:
        load_recipe("train", BASE, overrides, note=lambda _: None)
    except PenchantError as error:
        assert len(str(error).splitlines()) == 1, str(error)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text("abc_", min_size=1, max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | VALUES,
    )
)
def test_written_yaml_reads_as_the_same_value(value: dict[str, Any]) -> None:
    assert read_yaml(write_yaml(value), "here") == value
    assert yaml.safe_load(write_yaml(value)) == value, "readers of YAML 1.1 understand it too"
