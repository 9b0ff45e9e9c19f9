"""Token weights: how much each response token counts before the tokens are summed.

One file per weighting; its name is the file's. Each defines a frozen dataclass `Weighting` that
declares `published_as`, the name under which its combination with an objective is known, and does
two things: it marks the tokens of a pair (once, when the pair is tokenised), and it turns marks and
log-probabilities into weighted sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penchant import plugins
from penchant.errors import ObjectiveError

if TYPE_CHECKING:
    from penchant.weights._marks import mark, stop_word_ids


def names() -> list[str]:
    """What there is."""
    return plugins.names(__name__)


def load(name: str, **fields: Any) -> Any:
    """A weighting by its name; call it with the policy's and the reference's PairLogps (or None).

    Raises:
        ObjectiveError: unknown name; unknown or impossible field; lists what there is.
    """
    found = find(name)
    plugins.check_names(f"token weighting {name!r}", plugins.field_docs(found), fields)
    return found(**fields)


def describe(name: str) -> list[plugins.FieldDoc]:
    """Every field that `load(name, ...)` takes, with its range, default and meaning."""
    return plugins.field_docs(find(name))


def find(name: str) -> Any:
    """The class behind a name.

    Raises ObjectiveError where there is none; names the nearest and all.
    """
    known = names()
    if name not in known:
        raise ObjectiveError(
            f"no token weighting {name!r}{plugins.nearest(name, known)}; "
            f"there are {', '.join(known)}"
        )
    found: Any = plugins.find(__name__, "Weighting", name)
    found.name = name  # The file name is the only place that says it.
    return found


def __getattr__(name: str) -> Any:
    """`mark` and `stop_word_ids` load with the libraries they need, when first asked for."""
    if name in ("mark", "stop_word_ids"):
        from penchant.weights import _marks

        return getattr(_marks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["describe", "find", "load", "mark", "names", "stop_word_ids"]
