"""YAML as recipes use it: the core schema of YAML 1.2, one document, each key once.

PyYAML follows YAML 1.1, where `5e-7` is text and `no` is false; here 5e-7 is a number and `no`
is text. Anchors and tags are refused: a recipe is read by people.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from penchant.errors import RecipeError

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """Safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._refuse("aliases (*name) are not read; write the value out")
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            self._refuse("anchors (&name) are not read; write the value out")
        if getattr(event, "tag", None) is not None:
            self._refuse(f"tags ({event.tag}) are not read; write the plain value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                self._refuse(f"a key must be text, given {key!r}", key_node.start_mark)
            if key in seen:
                self._refuse(f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def _refuse(self, why: str, mark: Any = None) -> None:
        mark = mark or self.peek_event().start_mark
        raise yaml.constructor.ConstructorError(problem=why, problem_mark=mark)


def _number(loader: _Loader, node: Any) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _decimal(loader: _Loader, node: Any) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_KINDS = (("null", _NULL, "~nN"), ("bool", _BOOL, "tTfF"), ("int", _INT, "-+0123456789"))
for _kind, _pattern, _first in (*_KINDS, ("float", _FLOAT, "-+.0123456789")):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", _pattern, [*_first, *([""] if _kind == "null" else [])]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def read_yaml(text: str, origin: str) -> Any:
    """The value that YAML text stands for.

    Raises RecipeError, which names `origin` and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        why = " ".join((error.problem or error.context or "not YAML").split())
        raise RecipeError(f"{origin}{line}: {why}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{origin}: not a value that can be read ({error})") from error


class _Dumper(yaml.SafeDumper):
    """Safe dumper that also quotes what only YAML 1.2 takes for a number, and odd characters."""


def _text(dumper: _Dumper, text: str) -> Any:
    style = None
    if not text.isprintable():
        style = '"'
    elif any(pattern.match(text) for pattern in (_NULL, _BOOL, _INT, _FLOAT)):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def write_yaml(value: Any) -> str:
    """YAML text that any YAML reader, of 1.1 or 1.2, takes for the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
