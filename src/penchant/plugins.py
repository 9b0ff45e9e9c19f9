"""Plug-in files: a room offers what lies in it, found by file name and built from checked fields.

`dpo_gamma.py` is called `dpo-gamma`; a file whose name begins with an underscore is not offered.
A plug-in is a frozen dataclass; a field's annotation says what it may be, the string below it what
it means.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import math
import pkgutil
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from penchant.errors import ObjectiveError


@dataclass(frozen=True)
class Range:
    """Which values a numeric field may take; written into its annotation."""

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        brackets = "[" if self.low_included else "(", "]" if self.high_included else ")"
        if self.high == math.inf:
            return f"{'>=' if self.low_included else '>'} {self.low:g}"
        return f"in {brackets[0]}{self.low:g}, {self.high:g}{brackets[1]}"


Positive = Annotated[float, Range(low=0, low_included=False)]
NonNegative = Annotated[float, Range(low=0)]
SmoothingFraction = Annotated[float, Range(low=0, high=0.5, high_included=False)]


@dataclass(frozen=True)
class FieldDoc:
    """What a user can know of one field."""

    name: str
    allowed: str
    """Empty where the meaning says it."""
    default: str
    """`required` where there is none."""
    meaning: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default == "required"

    def __str__(self) -> str:
        """Name, range and default; the meaning stands in docs and help."""
        default = self.default if self.required else f"default {self.default}"
        within = ", ".join(filter(None, (self.allowed, default)))
        return f"{self.name} ({within})"


def names(package: str) -> list[str]:
    """What a room offers, sorted; reads the folder, imports no file of it."""
    room = importlib.import_module(package)
    files = (module.name for module in pkgutil.iter_modules(room.__path__))
    return sorted(file.replace("_", "-") for file in files if not file.startswith("_"))


def find(package: str, class_name: str, name: str) -> type:
    """The class that the file called `name` defines; `name` must be one of `names(package)`."""
    module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
    found: type = getattr(module, class_name)
    return found


def field_docs(config_class: type) -> list[FieldDoc]:
    """One entry per field of a dataclass, in its order."""
    hints = get_type_hints(config_class, include_extras=True)
    meanings = _attribute_docstrings(config_class)
    return [
        FieldDoc(
            name=f.name,
            allowed=_allowed(hints[f.name]),
            default="required" if f.default is MISSING else str(f.default),
            meaning=meanings.get(f.name, ""),
        )
        for f in fields(config_class)
    ]


def check_names(what: str, docs: Iterable[FieldDoc], given: Mapping[str, Any]) -> None:
    """Holds the names of given fields against those that `what` has.

    Raises ObjectiveError: an unknown or a missing field; lists all, and says what it means.
    """
    known = {doc.name: doc for doc in docs}
    listed = f"its fields are {', '.join(map(str, known.values()))}"
    for name in given:
        if name not in known:
            raise ObjectiveError(f"{what} has no field {name!r}{nearest(name, known)}; {listed}")
    missing = [doc for doc in known.values() if doc.required and doc.name not in given]
    if missing:
        needed = ", ".join(f"{doc} {doc.meaning.rstrip('.')}" for doc in missing)
        raise ObjectiveError(f"{what} needs {needed}; {listed}")


def check_fields(config: Any) -> None:
    """Holds the values of a frozen dataclass against their annotations.

    Raises ObjectiveError: names the field, what was given and what is allowed.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for f in fields(config):
        hint, value = hints[f.name], getattr(config, f.name)
        base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if base is float and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ObjectiveError(f"{f.name} must be a number {_allowed(hint)}, got {value!r}")
        for allowed in getattr(hint, "__metadata__", ()):
            if isinstance(allowed, Range) and value not in allowed:
                raise ObjectiveError(f"{f.name} must be {allowed}, got {value!r}")
        if get_origin(base) is Literal and value not in get_args(base):
            raise ObjectiveError(f"{f.name} must be {_allowed(hint)}, got {value!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A question to append to an error, or nothing where nothing is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _allowed(hint: Any) -> str:
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(base) is Literal:
        return " or ".join(map(repr, get_args(base)))
    ranges = (m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range))
    return " and ".join(map(str, ranges))


def _attribute_docstrings(config_class: type) -> dict[str, str]:
    """The string literal below each annotated field."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_class)))
    assert isinstance(tree.body[0], ast.ClassDef), "the source of a class starts with the class"
    body = tree.body[0].body
    found = {}
    for statement, below in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(below.value.value).split())
    return found
