"""What decides which trees come out, as one digest: rows, tokenizer, template, settings, code.

Anything that cannot be put into a digest makes the whole uncacheable; nothing is left out.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import marshal
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, final

from penchant.data.render import chat_template
from penchant.data.rows import SetAside
from penchant.data.trees import TokenSettings
from penchant.types import Comparison

_LIBRARIES = ("tokenizers", "transformers", "jinja2")
_CODE = ("data", "weights", "types.py")
"""Places of the package whose code makes trees or reports."""


class NoFingerprintError(Exception):
    """Something here has no content that could be compared; it says what."""


@final
class RowsDigest:
    """Takes in rows one after another, with everything that is known of them.

    Rows set aside count apart: whether they are met between the others or before them is nothing
    to do with what the rows are.
    """

    def __init__(self) -> None:
        self._used = hashlib.blake2b(digest_size=32)
        self._set_aside = hashlib.blake2b(digest_size=32)

    def add(self, row: Comparison | SetAside) -> None:
        """Takes in one row, used or set aside."""
        values = tuple(getattr(row, field.name) for field in fields(row))
        hashed = self._set_aside if isinstance(row, SetAside) else self._used
        try:
            # Version 2 has no references, so equal rows give equal bytes.
            hashed.update(marshal.dumps(values, 2))
        except ValueError:
            hashed.update(repr(values).encode("utf-8", "surrogatepass"))

    def result(self, *rest: Any) -> str:
        """The digest of all rows, and of what else is known of the data."""
        listed = (self._used.hexdigest(), self._set_aside.hexdigest(), rest)
        return _digest(repr(listed))


def combine(parts: Mapping[str, str]) -> str:
    """One digest of several named ones."""
    listed = json.dumps(dict(sorted(parts.items())))
    return hashlib.blake2b(listed.encode(), digest_size=20).hexdigest()


def ingredients(tokenizer: Any, settings: Iterable[Any]) -> dict[str, str]:
    """Digests of everything but the rows, by name.

    Args:
        settings: BuildSettings, PairSettings and TokenSettings.
    Raises:
        NoFingerprintError: a tokenizer in Python, or marks by a function that is not ours.
    """
    given = list(settings)
    templates = [_template(tokenizer, one) for one in given if isinstance(one, TokenSettings)]
    found = {
        "tokenizer": _digest(_tokenizer(tokenizer)),
        "template": _digest(repr(templates)),
        "code": code_version(),
        "libraries": ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES),
    }
    if any("strftime_now" in text for text in templates if text):
        found["date"] = time.strftime("%Y-%m-%d")  # Such a template prints the day.
    for one in given:
        for field in fields(one):
            if field.name != "chat_template":
                found[field.name] = _digest(_value(getattr(one, field.name)))
    return found


def _template(tokenizer: Any, settings: TokenSettings) -> str | None:
    named = settings.chat_template
    if named is not None:
        return chat_template(named)
    own = tokenizer.chat_template
    return own if own is None or isinstance(own, str) else _value(own)


def _tokenizer(tokenizer: Any) -> str:
    if not getattr(tokenizer, "is_fast", False):
        raise NoFingerprintError(f"{type(tokenizer).__name__} is no fast tokenizer")
    # One call puts padding and truncation, which are part of the text, to what we use.
    tokenizer(["a"], add_special_tokens=False, padding=False, truncation=False)
    roles = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    known = (
        type(tokenizer).__qualname__,
        sorted(roles.items()),
        (tokenizer.bos_token_id, tokenizer.eos_token_id),
        sorted(map(str, tokenizer.all_special_ids)),
        getattr(tokenizer, "split_special_tokens", None),
    )
    return repr(known) + tokenizer.backend_tokenizer.to_str()


def _value(value: Any) -> str:
    """Text that is equal for equal settings."""
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return repr(value)
    if isinstance(value, Mapping):
        return repr(sorted((_value(key), _value(one)) for key, one in value.items()))
    if isinstance(value, (set, frozenset)):
        return f"set{sorted(map(_value, value))}"
    if isinstance(value, (list, tuple)):
        return f"list{[_value(one) for one in value]}"
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        listed = [(field.name, _value(getattr(value, field.name))) for field in fields(value)]
        return f"{kind.__module__}.{kind.__qualname__}{listed}{_outside(kind)}"
    if inspect.isfunction(value):
        place = f"{value.__module__}.{value.__qualname__}"
        # A function within another, or a lambda, may hold anything.
        if place.startswith("penchant.") and value.__closure__ is None and "<" not in place:
            return place
    raise NoFingerprintError(f"{value!r} is not made of plain values")


def _outside(kind: type) -> str:
    """The code of a class that is not part of this package: a plug-in's, say."""
    if kind.__module__.startswith("penchant."):
        return ""
    try:
        return _digest(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    except (OSError, TypeError) as error:
        raise NoFingerprintError(f"the code of {kind.__qualname__} is not there") from error


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


@cache
def code_version() -> str:
    """Digest of the code that makes trees and reports: another version makes its own."""
    root = Path(__file__).parent.parent
    files = [path for name in _CODE for path in (root / name, *sorted((root / name).rglob("*.py")))]
    found = hashlib.blake2b(metadata.version("penchant").encode(), digest_size=20)
    for path in files:
        if path.is_file():
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()
