"""When the next request may be sent: limits per minute, and waiting that a server asks for."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from datetime import UTC
from typing import final

_LONGEST_BACKOFF = 60.0
"""[s] between two attempts, unless the server asks for more."""
_MOST_PATIENCE = 3600.0
"""[s] that a server may ask us to wait; more counts as this."""
_WORTH_TELLING = 5.0
"""[s] from which on a wait is told, and by which another must end later to be one of its own."""


@final
class Pace:
    """Spaces requests evenly; all requests of a process share one."""

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self._per_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = 0.0
        self._next_token = 0.0
        self._held_until = 0.0
        self._told_until = 0.0

    async def turn(self, num_tokens: int) -> None:
        """Waits until a request of about so many tokens may be sent."""
        now = time.monotonic()
        next_token = self._next_token if self._per_token else 0.0
        # What waits for the end of a hold is spaced after it, too.
        start = max(now, self._next_request, next_token, self._held_until)
        self._next_request = start + self._per_request
        self._next_token = max(start, self._next_token) + num_tokens * self._per_token
        while (left := max(start, self._held_until) - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def used(self, guessed: int, num_tokens: int) -> None:
        """Corrects the guess once the server has counted."""
        self._next_token += (num_tokens - guessed) * self._per_token

    def hold(self, seconds: float) -> bool:
        """No request is sent for so long; returns whether that is a wait to tell of.

        Requests that were under way together are all told to wait: that is one wait.
        """
        until = time.monotonic() + seconds
        self._held_until = max(self._held_until, until)
        if seconds < _WORTH_TELLING or until < self._told_until + _WORTH_TELLING:
            return False
        self._told_until = until
        return True


def backoff(attempt: int, first: float, asked: float | None, rng: random.Random) -> float:
    """[s] to wait before the next attempt: doubling, with jitter, never less than asked for.

    Args:
        attempt: that has failed, from 0.
        first: about how long to wait after the first one [s].
        asked: what the server's Retry-After says [s].
    """
    drawn = min(first * 2.0**attempt, _LONGEST_BACKOFF) * rng.uniform(0.5, 1.5)
    return drawn if asked is None else asked + min(drawn, first)


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for; None where it says nothing that can be read."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
            # A date that names no zone is in GMT.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return min(max(seconds, 0.0), _MOST_PATIENCE) if seconds == seconds else None
