"""From a file, a mapping and overrides to a typed recipe, and back to text."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from penchant.errors import MissingFileError, RecipeError
from penchant.recipe.aliases import old_names
from penchant.recipe.assign import (
    Item,
    build,
    flat_overrides,
    parse_arguments,
    plain,
    unknown_key,
)
from penchant.recipe.keys import FREE_MAPPINGS, Key, keys_of, texts_of
from penchant.recipe.kinds import Recipe, recipe_class
from penchant.recipe.text import read_yaml, write_yaml

Source = str | os.PathLike[str] | Mapping[str, Any] | None
Overrides = Sequence[str] | Mapping[str, Any] | None

_LONGEST_VALUE = 80


def load_recipe(
    command: str,
    source: Source = None,
    overrides: Overrides = None,
    note: Callable[[str], None] | None = None,
) -> Recipe:
    """The typed recipe of a command.

    Args
        source: path of a YAML file, a mapping, or None for an empty recipe.
        overrides: a mapping of dotted keys, or the arguments of a command line (`key=value`,
            `--key value`, and a recipe file or what stands in its place).
        note: called with what each old name became; default: one line each on stderr.
    Raises RecipeError (one line: key, what was given, what is allowed) and MissingFileError.
    """
    kind = recipe_class(command)
    if kind is None:
        raise RecipeError(f"{command} takes no recipe")
    keys = keys_of(kind)
    if overrides is None or isinstance(overrides, Mapping):
        changes = flat_overrides(overrides or {})
    else:
        source, changes = _from_arguments(overrides, kind, source)
    items = [*_source_items(source), *changes]
    built = build(items, keys, note or _note_on_stderr)
    try:
        return kind.model_validate(built)
    except ValidationError as error:
        raise _first_error(error, keys) from None


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every default that depends on other keys filled in."""
    return recipe.resolved()


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML text; loading it gives an equal recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


def _source_items(source: Source) -> list[Item]:
    if source is None:
        return []
    if isinstance(source, Mapping):
        return flat_overrides(source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"no recipe file {path}") from None
    except IsADirectoryError:
        inside = path / "recipe.yaml"
        hint = f"; its recipe is {inside}" if inside.is_file() else ""
        raise RecipeError(f"{path} cannot be read as a recipe: it is a folder{hint}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as a recipe: {error}") from None
    content = read_yaml(text, str(path))
    if content is None:
        return []
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: given {_short(content)}, allowed: keys with values")
    return flat_overrides(content)


def _from_arguments(
    arguments: Sequence[str], kind: type[Recipe], source: Source
) -> tuple[Source, list[Item]]:
    """The recipe file that a command line names, and its keys with values."""
    if isinstance(arguments, str):
        raise RecipeError(f"overrides: given {_short(arguments)}, allowed: a mapping or a list")
    keys = keys_of(kind)
    items, bare = parse_arguments(arguments, [*keys, *old_names()], texts_of(keys))
    given = None
    for argument in bare:
        if argument.startswith("-") or not argument:
            raise RecipeError(f"given {argument!r}, allowed: key=value or --key value")
        if kind.positional and not argument.endswith((".yaml", ".yml")):
            if given is not None:
                raise RecipeError(f"given {argument!r} besides {given}; allowed: one argument")
            given = argument
            items.insert(0, (kind.positional, argument))
        elif source is None:
            source = argument
        else:
            raise RecipeError(f"given {argument!r} besides {source}; allowed: one recipe file")
    return source, items


def _first_error(error: ValidationError, keys: Mapping[str, Key]) -> RecipeError:
    """One line for the first of pydantic's errors: unknown keys, then in the order of the keys."""
    places = {path: place for place, path in enumerate(keys)}

    def rank(one: Any) -> tuple[bool, int]:
        place = places.get(_dotted(one["loc"], keys), len(places))
        return one["type"] != "extra_forbidden", place

    found = min(error.errors(), key=rank)
    path = _dotted(found["loc"], keys)
    if found["type"] == "extra_forbidden":
        old = old_names() if "." not in path else ()
        return unknown_key(path, keys, old)
    key = keys.get(path)
    if found["type"] == "missing":
        allowed = key.allowed if key else "text"
        return RecipeError(f"{path} is missing; allowed: {allowed}; give {path}=... or a recipe")
    if found["type"] == "value_error":
        message = str(found["ctx"]["error"])
        named = key is None or key.is_section or message.startswith(path)
        return RecipeError(message if named else f"{path}: {message}")
    allowed = key.allowed if key else found["msg"].removeprefix("Input should be ")
    return RecipeError(f"{path}: given {_short(found['input'])}, allowed: {allowed}")


def _dotted(location: Sequence[int | str], keys: Mapping[str, Key]) -> str:
    """pydantic's place as a key; the names it gives to the members of a union are left out."""
    path = ""
    for part in location:
        longer = f"{path}.{part}" if path else str(part)
        is_member_name = path in keys and not keys[path].is_section and path not in FREE_MAPPINGS
        if isinstance(part, str) and not is_member_name:
            path = longer
    return path


def _short(value: Any) -> str:
    text = repr(plain(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _note_on_stderr(text: str) -> None:
    """One process of several speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)
