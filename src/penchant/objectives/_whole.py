"""What an objective with something added says of itself: what the objective in it says."""

from __future__ import annotations

from typing import Any


class Whole:
    """Abstract: an objective around another one, its `base`, whose declarations hold for both."""

    base: Any

    @property
    def name(self) -> str:
        """The base's."""
        return self.base.name

    @property
    def needs(self) -> frozenset[str]:
        """What the base needs."""
        return self.base.needs

    @property
    def input(self) -> str:
        """What the base takes."""
        return self.base.input

    @property
    def scope(self) -> str:
        """The base's scope."""
        return self.base.scope
