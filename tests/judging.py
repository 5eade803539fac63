"""A judge for tests: an endpoint that is a function."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from pargo_ds.evaluation.ask_judge import judge_folder


def reply(text="", kind="answered", reason="", model="grader-2026", wait_s=0.0):
    return SimpleNamespace(kind=kind, text=text, reason=reason, model=model, wait_s=wait_s)


def judge(folder, replies, model="grader", **prompts):
    """Judge with a function of the request's text; returns the bodies that were sent."""
    bodies = []

    async def ask(body):
        bodies.append(body)
        return replies(body["messages"][-1]["content"])

    asyncio.run(judge_folder(folder, ask, model, prompts))
    return bodies
