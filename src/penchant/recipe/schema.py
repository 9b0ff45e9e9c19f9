"""JSON schema of a recipe, for editors: completion, types and meanings while one types.

It allows the short forms that loading allows: a plain value for a mapping with a main field,
dotted keys and old names at the top, `none`.
"""

from __future__ import annotations

from typing import Any

from penchant.recipe.aliases import old_names
from penchant.recipe.keys import MAIN_FIELDS, Key, keys_of
from penchant.recipe.kinds import Recipe

_ANYTHING: dict[str, Any] = {}


def json_schema(kind: type[Recipe]) -> dict[str, Any]:
    """The schema of what may stand in a recipe file of this kind."""
    schema = kind.model_json_schema()
    for definition in [schema, *schema.get("$defs", {}).values()]:
        _loosen(definition)
    schema.pop("required", None)  # A key may also come dotted, under an old name or from outside.
    properties = schema["properties"]
    for path, key in keys_of(kind).items():
        if path in MAIN_FIELDS and path in properties:
            properties[path] = _with_short_form(properties[path])
        properties.setdefault(path, {"description": _words(key)})
    for name in old_names():
        properties.setdefault(name, {"description": "An old name, from TRL and its kin."})
    schema["patternProperties"] = {r"^(objective|config)\.": _ANYTHING}
    return schema


def _loosen(definition: dict[str, Any]) -> None:
    """Inside a definition: short forms, and `none` for what may be nothing."""
    for name, given in definition.get("properties", {}).items():
        given.pop("title", None)
        if name in ("train", "eval", "soft_labels", "health"):
            definition["properties"][name] = _with_short_form(given)
        elif given.get("type") == "array":
            items = given["items"]
            definition["properties"][name] = {**_plain(given), "anyOf": [given, items]}
        if any(one.get("type") == "null" for one in given.get("anyOf", ())):
            given["anyOf"].append({"const": "none"})


def _with_short_form(given: dict[str, Any]) -> dict[str, Any]:
    """A text may stand for it, or a list of texts and sources, or one source."""
    mappings = [{"type": "string"}, {"type": "array"}, {"type": "object"}]
    return {**_plain(given), "anyOf": [given, *mappings]}


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in ("description", "default") if key in given}


def _words(key: Key) -> str:
    return f"{key.meaning} Allowed: {key.allowed}. Default: {key.default or 'its fields'}."
