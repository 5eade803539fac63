"""Where the time of a step goes: data, vision, projector, LLM, backward, update.

Both trainers end in a DeepSpeed engine around the same model, so the same hooks time both. CPUs are
timed in process CPU time; a GPU is waited for at each boundary, so parts are timed in a turn of
their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

PARTS = ("data", "vision", "projector", "llm", "loss and fusion", "backward", "update")
REST = "rest"
"""The trainer's own work, and that of its loader processes."""


class StepParts:
    """Adds up the seconds of each part while a turn asks for them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.active = False
        self._since: dict[str, float] = {}

    def watch(self, engine: Any) -> None:
        """Put hooks on a DeepSpeed engine and on the parts of its ParGo model."""
        model = engine.module
        for name, module in (
            ("forward", engine),
            ("vision", model.vision),
            ("projector", model.projector),
            ("llm", model.get_decoder()),
        ):
            self._watch_module(name, module)
        engine.backward = self._timed("backward", engine.backward)
        engine.step = self._timed("update", engine.step)

    def begin(self, active: bool) -> None:
        """A turn begins, to be timed by part or not."""
        self.active = active
        self.seconds = dict.fromkeys(("forward", *PARTS), 0.0)

    def end(self, seconds: float, cpu_s: float) -> dict[str, float]:
        """Return the seconds of PARTS and REST in a turn that took so long; empty if it was not
        active.
        """
        if not self.active:
            return {}
        self.active = False
        return split(self.seconds, seconds if self.device.type == "cuda" else cpu_s)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens in here."""
        self._enter(name)
        yield
        self._leave(name)

    def _enter(self, name: str) -> None:
        if self.active:
            self._since[name] = self._now()

    def _leave(self, name: str) -> None:
        if self.active and name in self._since:
            self.seconds[name] += self._now() - self._since.pop(name)

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _watch_module(self, name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self._enter(name))
        module.register_forward_hook(lambda *_: self._leave(name))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return call(*arguments, **options)

        return timed


def split(measured: dict[str, float], whole: float) -> dict[str, float]:
    """Return the parts that do not overlap and add up to `whole`: what of `forward` is in none of
    its parts is loss and fusion, what of the whole is in no part is the rest.
    """
    inner = sum(measured[name] for name in ("vision", "projector", "llm"))
    parts = {name: measured[name] for name in PARTS}
    parts["loss and fusion"] = measured["forward"] - inner
    return parts | {REST: whole - sum(parts.values())}
