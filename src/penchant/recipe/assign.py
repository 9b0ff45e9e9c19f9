"""Keys and values onto a nested mapping: dotted keys, main fields, old names, command lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from penchant.errors import RecipeError
from penchant.recipe.aliases import is_old_name, shown, translate
from penchant.recipe.aliases_derived import MAPPING
from penchant.recipe.keys import MAIN_FIELDS, Key, nearest
from penchant.recipe.text import read_yaml

Item = tuple[str, Any]

OF_REWARDS = "bradley-terry"
"""The objective of a recipe that trains a reward model, where it names none."""

_ASSIGNMENT = re.compile(r"^[A-Za-z_][\w.\-]*=", flags=re.ASCII)


def parse_arguments(
    arguments: Sequence[str], known: Iterable[str], texts: Collection[str] = ()
) -> tuple[list[Item], list[str]]:
    """`key=value`, `--key=value`, `--key value` and `--flag` as keys with YAML values, in order.

    After `--key` comes its value, unless that is another option or sets a known key.

    Args:
        texts: keys that take nothing but text, so that `output_dir=2024` is one.
    Returns the keys with values, and the bare arguments.
    Raises RecipeError where a value is not YAML.
    """
    known, items, bare, left = set(known), [], [], list(arguments)
    while left:
        argument = left.pop(0)
        text = argument[2:] if argument.startswith("--") else argument
        if _ASSIGNMENT.match(text):
            name, value = text.split("=", 1)
            items.append(_item(name, value, texts))
        elif text != argument and text:
            has_value = bool(left) and not _is_option(left[0], known)
            items.append(_item(text, left.pop(0), texts) if has_value else _item(text, "true", ()))
        else:
            bare.append(argument)
    return items, bare


def flat_overrides(overrides: Mapping[str, Any]) -> list[Item]:
    """Overrides from Python: values as they are, with paths as text and tuples as lists."""
    return [(_checked_key(key), plain(value)) for key, value in overrides.items()]


def plain(value: Any) -> Any:
    """The value with only what YAML can say: mappings, lists, text, numbers, booleans, none."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if hasattr(value, "__fspath__") else value


def build(items: Iterable[Item], keys: Mapping[str, Key], note: Callable[[str], None]) -> dict:
    """The nested mapping that the items build, the last one winning.

    Args
        keys: those of the recipe; an old name that means none of them is unknown.
        note: told what each old name became.
    Raises RecipeError for unknown top-level keys and values that old names cannot have.
    """
    items = list(items)
    notes: dict[str, dict[str, None]] = {}
    given = {key: value for key, value in items if key not in keys and is_old_name(key)}
    of_rewards = "objective" in keys and keys["objective"].default == OF_REWARDS
    built: dict[str, Any] = {}
    for key, value in items:
        if key not in given:
            assign(built, key, value)
            continue
        translation = translate(key, value, given, of_rewards=of_rewards)
        for new, new_value in translation.values.items():
            if new.split(".")[0] not in keys:
                raise RecipeError(f"{key} means {new}, which this command does not have")
            assign(built, new, new_value)
        notes.setdefault(translation.became, {})[key] = None
    for became, old in notes.items():
        note(f"{', '.join(f'{key}={shown(given[key])}' for key in old)} {became}")
    return _without_none(built, keys)


def assign(built: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key. A plain value where a mapping has a main field sets that field.

    Raises RecipeError where a part of the key is no mapping.
    """
    parts = key.split(".")
    if not all(parts):
        raise RecipeError(f"unknown key {key!r}: a part between dots is empty")
    here = built
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        here[parts[depth - 1]] = here = _as_mapping(here.get(parts[depth - 1]), path)
    last, main = parts[-1], MAIN_FIELDS.get(key)
    if value is MAPPING:
        here[last] = _as_mapping(here.get(last), key)
    elif main is None or _stands_for_itself(value, main):
        here[last] = dict(value) if isinstance(value, Mapping) else value
    else:
        here[last] = here[last] if isinstance(here.get(last), dict) else {}
        assign(built, f"{key}.{main}", value)


def unknown_key(key: str, keys: Iterable[str], old: Iterable[str] = ()) -> RecipeError:
    """The error for a key that does not exist, with the nearest one that does."""
    found = nearest(key, [*keys, *old])
    hint = f"did you mean {found}?" if found else "see --help for all keys"
    return RecipeError(f"unknown key {key if key.isprintable() else repr(key)}; {hint}")


def _stands_for_itself(value: Any, main: str) -> bool:
    """Whether a value is meant whole where a mapping with a main field stands."""
    is_list_of_sources = isinstance(value, list) and main == "path"
    return isinstance(value, Mapping) or value in (None, "none") or is_list_of_sources


def _as_mapping(value: Any, path: str) -> dict[str, Any]:
    """What stands at a key, as a mapping that a field can be set on."""
    if isinstance(value, dict):
        return value
    if value is None or value == "none":
        return {}
    main = MAIN_FIELDS.get(path)
    if main is None:
        raise RecipeError(f"{path}: given {value!r}, but a key below it needs a mapping there")
    if isinstance(value, list) and main == "path":
        if len(value) != 1:
            raise RecipeError(f"{path} is a list of {len(value)}; give the whole list anew")
        return _as_mapping(value[0], path)
    return {main: value}


def _item(key: str, text: str, texts: Collection[str]) -> Item:
    key = _checked_key(key.replace("-", "_"))
    value = read_yaml(text, key)
    is_number = isinstance(value, (bool, int, float)) and key in texts
    return key, text.strip() if is_number else value


def _checked_key(key: Any) -> str:
    if not isinstance(key, str) or not key.isprintable():
        raise RecipeError(f"unknown key {key!r}: a key is text, parts separated by dots")
    return key


def _is_option(argument: str, known: set[str]) -> bool:
    """Whether an argument begins the next setting instead of being a value."""
    if argument.startswith("--"):
        return True
    key = argument.partition("=")[0].replace("-", "_")
    return bool(_ASSIGNMENT.match(argument)) and (key in known or key.split(".")[0] in known)


def _without_none(built: dict[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """`none` as nothing, for the keys that may be nothing."""
    for path, key in keys.items():
        *parents, last = path.split(".")
        here: Any = built
        for part in parents:
            here = here.get(part) if isinstance(here, dict) else None
        if key.takes_none and isinstance(here, dict) and here.get(last) == "none":
            here[last] = None
    return built
