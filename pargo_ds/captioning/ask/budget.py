"""Money and rates: what a request may cost, what is left, and how often one may ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

UNMEASURED_TOKENS = 40_000
"""Input tokens that an image is assumed to take at most before any was measured: the most that is
published for an image of 1024 pixels is 25,501 (gpt-4o-mini)."""
MEASURED = 8
"""Answers after which the greatest measured number is believed, times MARGIN."""
MARGIN = 1.25


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens, in and out. Zero for one's own server."""

    input: float
    output: float

    def __post_init__(self) -> None:
        if not (0 <= self.input < 1e6 and 0 <= self.output < 1e6):
            raise ValueError(
                f"the price {self.input},{self.output} is none; expected dollars for a million tokens"
            )

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the dollars of one request."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass
class InputTokenBound:
    """The most tokens that a request may take in: assumed first, then 1.25 times the greatest of
    the measured ones.
    """

    texts: int
    """Characters of the prompt, which are never fewer than its tokens."""
    answers: int = 0
    greatest: int = 0

    def add(self, usage: dict[str, Any] | None) -> None:
        """Learn from an answer's usage."""
        tokens = (usage or {}).get("prompt_tokens")
        if isinstance(tokens, int) and tokens > 0:
            self.answers += 1
            self.greatest = max(self.greatest, tokens)

    @property
    def input_tokens(self) -> int:
        """The most tokens that a request may be charged for, image included."""
        if self.answers < MEASURED:
            return max(UNMEASURED_TOKENS + self.texts, int(MARGIN * self.greatest))
        return int(MARGIN * self.greatest)


@dataclass
class Budget:
    """Dollars: `limit` is never exceeded, because the most that a request may cost is set aside
    before it is sent.
    """

    limit: float
    spent: float = 0.0
    reserved: float = 0.0
    in_flight: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def reserve(self, dollars: float) -> bool:
        """Set an amount aside; False when it would exceed the limit."""
        if self.spent + self.reserved + dollars > self.limit:
            return False
        self.reserved += dollars
        self.in_flight += 1
        return True

    def settle(self, reserved: float, cost: float) -> None:
        """Give back what was set aside, and count what it did cost."""
        self.reserved -= reserved
        self.spent += cost
        self.in_flight -= 1
        self.changed.set()
        self.changed = asyncio.Event()


class Rate:
    """At most `per_minute` units (None: any number), spread evenly; `pause` stops all for a while.

    `clock` gives seconds, `sleep` waits for some; tests bring their own.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self.per_minute, self._clock, self._sleep = per_minute, clock, sleep
        self._next = clock()

    async def take(self, units: float = 1) -> None:
        """Wait for one's turn to use `units`."""
        start = max(self._next, self._clock())
        if self.per_minute is not None:
            self._next = start + units * 60 / self.per_minute
        if start > self._clock():
            await self._sleep(start - self._clock())

    def pause(self, seconds: float) -> None:
        """Let nobody go before so many seconds have passed."""
        self._next = max(self._next, self._clock() + seconds)
