"""The table of a recipe's keys: type, default and meaning, as help, errors and schema show them."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from penchant.recipe.kinds import Recipe

MAIN_FIELDS = {
    "model": "path",
    "reference": "path",
    "data": "train",
    "data.train": "path",
    "data.eval": "path",
    "data.soft_labels": "path",
    "training.health": "action",
    "objective": "name",
    "task_weights": "name",
    "endpoint": "base_url",
    "objective.token_weights": "name",
}
"""Where a plain value may stand for a mapping: it means this field of it."""

FREE_MAPPINGS = ("objective", "config")
"""Keys whose fields the recipe does not know; their owners check them."""

_PLAIN = {str: "text", int: "integer", float: "number", bool: "true | false"}
_SOURCES = {"data.train", "data.eval"}


@dataclass(frozen=True)
class Key:
    """One dotted key of a recipe."""

    path: str
    allowed: str
    """What may be given, in words."""
    default: str
    """`required`, or the default in words."""
    meaning: str
    is_section: bool = False
    """Whether keys below it are listed too."""
    takes_none: bool = False
    """Whether `none` unsets it."""


def keys_of(kind: type[Recipe]) -> dict[str, Key]:
    """Every dotted key of a recipe, in order of declaration; output_dir last."""
    listed = list(_walk(kind, ""))
    listed.sort(key=lambda key: key.path == "output_dir")
    return {key.path: key for key in listed}


def texts_of(keys: Mapping[str, Key]) -> set[str]:
    """The keys that take nothing but text, by themselves or by what a plain value means there."""

    def is_text(path: str) -> bool:
        main = MAIN_FIELDS.get(path)
        if main is not None and f"{path}.{main}" in keys:
            return is_text(f"{path}.{main}")
        return re.fullmatch(r"text( \([^)]*\))?( \| none)?", keys[path].allowed) is not None

    return {path for path in keys if is_text(path)}


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known key most like the given one: of its last part, in its section, whole, anywhere."""
    known = list(known)
    section, _, last = given.rpartition(".")
    siblings = [key for key in known if section and key.rpartition(".")[0] == section]
    same = [key for key in known if key.rpartition(".")[2] == last]
    below = [key for key in same if section and key.startswith(f"{section}.")]
    same = below or (same if len(same) == 1 else [])
    whole = [] if siblings else difflib.get_close_matches(given, known, n=1)
    found = (*same, _by_last_part(last, siblings), *whole, _by_last_part(last, known))
    return next(filter(None, found), None)


def _by_last_part(last: str, keys: list[str]) -> str | None:
    """The key whose last part is most like this, or is abbreviated by it: `lr`, `epochs`."""
    names = {key.rpartition(".")[2]: key for key in reversed(keys)}
    short = {"".join(word[:1] for word in name.split("_")): name for name in names if "_" in name}
    words = {word: name for name in names for word in name.split("_")}
    close = difflib.get_close_matches(last, names, n=1)
    name = short.get(last) or next(iter(close), None) or words.get(last)
    return None if name is None else names[name]


def _walk(model: type[BaseModel], prefix: str) -> Iterable[Key]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        section = _section(field.annotation)
        yield _key(path, field, section)
        if section is not None:
            yield from _walk(section, f"{path}.")


def _key(path: str, field: FieldInfo, section: type[BaseModel] | None) -> Key:
    meaning, stated = _split_default(field.description or "")
    default = "required" if field.is_required() else stated or _default_text(field.default)
    allowed = _allowed(path, field, section)
    takes_none = _takes_none(field.annotation) or field.default == ()
    if takes_none and "none" not in allowed and not _is_list(field.annotation):
        allowed += " | none"
    is_section = section is not None
    return Key(path, allowed, default, meaning, is_section, takes_none)


def _split_default(description: str) -> tuple[str, str | None]:
    """A docstring may end in `; default: <words>.`, for defaults that depend on other keys."""
    found = re.fullmatch(r"(.+); default: (.+?)\.?", description, flags=re.DOTALL)
    return (f"{found[1]}.", found[2]) if found else (description, None)


def _default_text(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, BaseModel):
        return ""
    if isinstance(default, dict):
        return str(default.get("name", "none"))
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _allowed(path: str, field: FieldInfo, section: type[BaseModel] | None) -> str:
    if section is not None:
        fields = "{" + ", ".join(section.model_fields) + "}"
        main = f"{MAIN_FIELDS[path]} | " if path in MAIN_FIELDS else ""
        return f"{main}{fields}" + (" | list of these" if path in _SOURCES else "")
    if path in FREE_MAPPINGS:
        return "name | {name, its fields}" if path in MAIN_FIELDS else "mapping"
    return _type_text(field.annotation) + _bounds(field.metadata)


def _bounds(metadata: Iterable[Any]) -> str:
    texts = []
    for one in metadata:
        for kind, sign in (("Gt", ">"), ("Ge", ">="), ("Lt", "<"), ("Le", "<=")):
            if isinstance(one, getattr(annotated_types, kind)):
                limit = getattr(one, kind.lower())
                texts.append(f"{sign} {limit:g}" if isinstance(limit, float) else f"{sign} {limit}")
        if isinstance(one, annotated_types.MinLen):
            texts.append("(not empty)")
    return f" {', '.join(texts)}" if texts else ""


def _type_text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        metadata = [one for given in args[1:] for one in getattr(given, "metadata", [given])]
        return _type_text(args[0]) + _bounds(metadata)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(one) for one in args if one is not type(None))
    if origin is tuple:
        return f"{_type_text(args[0])} or a list"
    return _PLAIN.get(annotation, "mapping")


def _members(annotation: Any) -> list[Any]:
    """The types in an annotation, inside unions and tuples too."""
    inner = [member for one in get_args(annotation) for member in _members(one)]
    return [annotation, *inner]


def _section(annotation: Any) -> type[BaseModel] | None:
    for one in _members(annotation):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _takes_none(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple
