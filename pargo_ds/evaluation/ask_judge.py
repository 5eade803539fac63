"""Ask a judge for the verdicts that are missing, at any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, Grading, Item
from pargo_ds.evaluation.benchmarks import BENCHMARKS, benchmark_named
from pargo_ds.evaluation.judge import Verdict, VerdictStore, answers_to_judge, messages, with_prompt
from pargo_ds.evaluation.score import stores_in

SETTINGS = {"temperature": 0, "max_tokens": 32}
"""For all: the authors' programs have no temperature, or 0.2, whose grades could not be repeated."""
AT_ONCE = 8
TRIES = 5
"""Of one request, where the endpoint says that another one may succeed."""


class Reply(Protocol):
    """One attempt at the endpoint, as `captioning.verdict.Verdict` tells it: `kind` is answered,
    again, unknown (perhaps answered), stop (nobody gets an answer), or else never.
    """

    @property
    def kind(self) -> str:
        """What the attempt came to."""

    @property
    def reason(self) -> str:
        """Why there is no answer."""

    @property
    def wait_s(self) -> float | None:
        """Seconds after which the endpoint wants to be asked again; None when it does not say."""

    @property
    def text(self) -> str:
        """The answer."""

    @property
    def model(self) -> str:
        """The name under which the endpoint's model answered."""


Ask = Callable[[dict[str, Any]], Awaitable[Reply]]


class JudgeStoppedError(UserError):
    """The judge's endpoint answers nobody; the message says why."""


async def judge_folder(
    out: Path,
    ask: Ask,
    model: str,
    prompts: Mapping[str, Path],
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Have all answers in a folder judged that a judge can grade and that have no verdict; returns
    how many. `prompts` are files of one's own by the benchmark's name.

    Raises UserError when no judge can grade anything in the folder, OtherAnswersError when another
    one was there before, JudgeStoppedError, MissingAnswersError as `Store.answers`.
    """
    gradings = {name: one.grading for name, one in BENCHMARKS.items() if one.grading is not None}
    for name, path in prompts.items():
        gradings[name] = with_prompt(benchmark_named(name), path)
    stores = {name: store for name, store in stores_in(out).items() if name in gradings}
    if not stores:
        raise UserError(f"{out} holds no answers that need a judge: --judge changes nothing there")
    asked = 0
    for name, store in stores.items():
        grading, verdict_store = gradings[name], VerdictStore(store)
        todo = answers_to_judge(verdict_store)
        verdict_store.open(model, grading, SETTINGS)
        verdict_store.write(verdict_store.verdicts().values())  # without a line that a kill has cut
        await _judge_all(verdict_store, todo, ask, model, grading, progress)
        asked += len(todo)
    return asked


async def _judge_all(
    verdict_store: VerdictStore,
    todo: list[tuple[Item, Answer]],
    ask: Ask,
    model: str,
    grading: Grading,
    progress: Callable[[int], object],
) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(item: Item, answer: Answer) -> None:
        async with places:
            body = {"model": model, "messages": messages(grading, item, answer), **SETTINGS}
            reply = await _reply(ask, body)
        verdict_store.add(Verdict(item.id, answer.text, reply.text, reply.model, reply.reason))
        progress(1)

    tasks = [asyncio.create_task(one(item, answer)) for item, answer in todo]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _reply(ask: Ask, body: dict[str, Any]) -> Reply:
    for attempt in range(TRIES):
        reply = await ask(body)
        if reply.kind == "stop":
            raise JudgeStoppedError(f"the judge gives no verdicts: {reply.reason}")
        if reply.kind not in ("again", "unknown"):
            return reply
        if attempt + 1 < TRIES:
            wait_s = reply.wait_s
            if wait_s is None:
                wait_s = 2.0**attempt
            await asyncio.sleep(wait_s)
    raise JudgeStoppedError(
        f"the judge gave no verdict in {TRIES} attempts: {reply.reason}. The same command goes on"
    )
