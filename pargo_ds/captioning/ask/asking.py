"""Many requests at once: each key is asked once, within the budget and the rates, on the ledger's
record.

One process and one event loop: the budget, the rates and the ledger are global to it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pargo_ds.captioning.ask.budget import MEASURED, Budget, InputTokenBound, Price, Rate
from pargo_ds.captioning.ask.endpoint import Endpoint
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.prompt import Prompt
from pargo_ds.captioning.ask.request import (
    Job,
    Parameters,
    request_body,
    request_key,
    requests_of,
)
from pargo_ds.captioning.ask.verdict import Verdict
from pargo_ds.data.sources import Reject

FAILURES_IN_A_ROW = 10
"""Requests that end without any answer, one after another, after which the endpoint counts as down.
"""
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class RequestPolicy:
    """Bounds of the requests: `tries` of each, the first pause between two tries, how many
    requests at once and a minute, tokens a minute.
    """

    tries: int = 6
    pause_s: float = 1.0
    at_once: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass
class Account:
    """What a session of asking did; `stopped` says why it ended before its end."""

    asked: int = 0
    known: int = 0
    waiting_for_batch: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    stopped: str = ""


class Asker:
    """Asks one endpoint one prompt with one set of parameters. See `ask_all`."""

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        prompt: Prompt,
        parameters: Parameters,
        price: Price,
        limit: float,
        policy: RequestPolicy,
    ) -> None:
        self.endpoint, self.ledger, self.prompt = endpoint, ledger, prompt
        self.parameters, self.price, self.policy = parameters, price, policy
        self.budget = Budget(limit, spent=ledger.spent)
        self.requests, self.tokens = (
            Rate(policy.requests_per_minute),
            Rate(policy.tokens_per_minute),
        )
        self.input_bound = InputTokenBound(texts=sum(map(len, prompt.texts("").values())) + 4000)
        self.account = Account()
        self.response_format = prompt.schema is not None
        self._rng = random.Random()
        self._failures = 0
        self._busy: set[str] = set()
        self._turn = asyncio.Lock()

    async def ask_all(self, jobs: Iterator[Job], most: int | None = None) -> Account:
        """Ask for the captions of all jobs that the ledger does not have (at most `most` of them).

        Ends early, with the reason in `account.stopped`, when the budget is used up, the endpoint
        refuses everybody or is down, or `stop` was called. Raises MachineFault when the ledger
        cannot be written; requests in flight are then waited for.
        """
        self._jobs, self._left = jobs, most
        workers = [asyncio.create_task(self._work()) for _ in range(self.policy.at_once)]
        done = await asyncio.gather(*workers, return_exceptions=True)
        fault = next((found for found in done if isinstance(found, BaseException)), None)
        if fault is not None:
            raise fault
        return self.account

    def stop(self, reason: str) -> None:
        """Send nothing more; what is in flight is waited for."""
        self.account.stopped = self.account.stopped or reason

    async def _work(self) -> None:
        try:
            while (job := await self._next()) is not None:
                key, parameters = self._last_request(job)
                await self._ask(job, parameters, key)
                longer, parameters = self._last_request(job)
                if longer != key and longer not in self.ledger:  # the answer was cut
                    await self._ask(job, parameters, longer)
                self._busy.discard(self._first_key(job))
        except BaseException:
            self.stop("a fault")
            raise

    async def _next(self) -> Job | None:
        """The next job whose answer nobody has and nobody waits for."""
        async with self._turn:
            while not self.account.stopped and self._left != 0:
                job = await asyncio.to_thread(next, self._jobs, None)
                if job is None:
                    return None
                key, _ = self._last_request(job)
                if key in self.ledger or self._first_key(job) in self._busy:
                    self.account.known += 1
                    if key in self.ledger and self.input_bound.answers < MEASURED:
                        self.input_bound.add(self.ledger.answer(key)["usage"])
                elif key in self.ledger.batched:
                    self.account.waiting_for_batch += 1
                else:
                    if self._left is not None:
                        self._left -= 1
                    self._busy.add(self._first_key(job))
                    return job
        return None

    def _last_request(self, job: Job) -> tuple[str, Parameters]:
        return requests_of(job, self.prompt, self.parameters, self.ledger.cut)[-1]

    def _first_key(self, job: Job) -> str:
        return request_key(job, self.prompt, self.parameters)

    async def _ask(self, job: Job, parameters: Parameters, key: str) -> None:
        """Try until there is an answer, the tries are used up, or all is stopped."""
        said = ""
        for attempt in range(1, self.policy.tries + 1):
            if self.account.stopped:
                return
            found = await self._attempt(job, parameters, key, attempt)
            if found is None:
                return
            if found.kind in ("answered", "rejected"):
                self._failures = 0
                self.account.asked += 1
                self.account.outcomes[found.outcome or found.kind] += 1
                return
            said = found.reason
            if found.kind == "stop":
                self.stop(found.reason)
                return
            if found.kind != "no_format" and attempt < self.policy.tries:
                await self._pause(found, attempt)
        self.account.failed[said[:80]] += 1
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            self.stop(f"the last {self._failures} requests got no answer; the last one: {said}")

    async def _attempt(
        self, job: Job, parameters: Parameters, key: str, attempt: int
    ) -> Verdict | None:
        """One request, on the record before and after; None when it was not sent."""
        formatted = self.response_format
        try:
            body = await asyncio.to_thread(
                request_body, job, self.prompt, parameters, response_format=formatted
            )
        except Reject as reject:
            found = Verdict("rejected", reject.reason)
            await self.ledger.append(self._entry(found, key, job, 0.0))
            return found
        reserved = await self._reserve(parameters.max_tokens)
        if reserved is None:
            return None
        cost = 0.0
        try:
            await self.requests.take()
            expected = 0
            if self.input_bound.answers:
                expected = self.input_bound.input_tokens
            await self.tokens.take(expected)
            await self.ledger.append(
                {"kind": "sent", "key": key, "reserved": reserved, "id": job.id, "attempt": attempt}
            )
            self.account.attempts += 1
            found = await self.endpoint.ask(body)
            cost = self._cost(found, reserved)
            await self.ledger.append(self._entry(found, key, job, cost))
            self.input_bound.add(found.usage)
        finally:
            self.budget.settle(reserved, cost)
        if found.kind == "no_format":
            if not formatted:
                return Verdict("rejected", found.reason)
            self.response_format = False
        return found

    async def _reserve(self, max_tokens: int) -> float | None:
        """Set the most that a request may cost aside and return it, waiting for others to give back
        what they did not need; stop, and return None, when that does not help.
        """
        while not self.account.stopped:
            dollars = self.price.of(self.input_bound.input_tokens, max_tokens)
            if self.budget.reserve(dollars):
                return dollars
            if not self.budget.in_flight:
                self.stop("budget")
                return None
            await self.budget.changed.wait()
        return None

    def _cost(self, found: Verdict, reserved: float) -> float:
        if found.kind == "unknown":
            return reserved
        if found.kind != "answered":
            return 0.0
        if found.usage is None:
            return reserved  # the endpoint does not say, so the worst is assumed
        return self.price.of(found.usage["prompt_tokens"], found.usage["completion_tokens"])

    def _entry(self, found: Verdict, key: str, job: Job, cost: float) -> dict[str, Any]:
        if found.kind == "answered" or found.kind == "rejected":
            return {
                "kind": "answered",
                "key": key,
                "id": job.id,
                "outcome": found.outcome or found.kind,
                "text": found.text or found.reason,
                "usage": found.usage,
                "cost": cost,
                "model": found.model,
                "request_id": found.request_id,
            }
        if found.kind == "unknown":
            return {"kind": "unknown", "key": key, "cost": cost, "reason": found.reason}
        return {"kind": "unpaid", "key": key, "reason": found.reason}

    async def _pause(self, found: Verdict, attempt: int) -> None:
        """Full jitter (0 to pause x 2^attempt), or what the endpoint asks for, which all heed."""
        if found.wait_s is not None:
            self.requests.pause(found.wait_s)
            return
        longest = min(LONGEST_PAUSE_S, self.policy.pause_s * 2 ** (attempt - 1))
        await asyncio.sleep(self._rng.uniform(0, longest))
