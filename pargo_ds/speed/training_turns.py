"""A turn of a trainer, as one rank measures it; and what a turn shows, as a worker is told."""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection

import psutil
import torch

from pargo_ds.speed.step_parts import StepParts
from pargo_ds.training.meters import memory_gib


@dataclass(frozen=True)
class Asked:
    """What a worker shall do next: an epoch, or `steps` optimizer steps, by part if wanted."""

    steps: int | None = None
    by_part: bool = False


@dataclass
class Turn:
    """One rank's figures of a turn; of several ranks, their sums (or maxima, where they wait for
    each other).
    """

    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of the process and of its loader processes."""
    data_wait_s: float = 0.0
    useful_tokens: int = 0
    computed_tokens: int = 0
    """Padding included."""
    steps: int = 0
    memory_gib: float = 0.0
    """Most that the rank has held since it began."""
    sample_ids: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of each part of the turn's steps (step_parts.py), if they were asked for."""


class Turns:
    """A worker's side: takes what is asked from the pipe, and sends back each turn's figures.

    A trainer calls `begin` and `end` around the steps of a turn, and `waiting`, `computed` and
    `loss` in them.
    """

    def __init__(self, pipe: Connection, device: torch.device) -> None:
        self.pipe, self.device = pipe, device
        self.asked = Asked()
        self.turn = Turn()
        self.parts = StepParts(device)
        self._started = self._cpu_s = 0.0

    def begin(self) -> Asked:
        """Wait until a turn is asked for, and begin it. Raises EOFError when nobody asks any
        more.
        """
        self.asked = self.pipe.recv()
        self.turn = Turn()
        self.parts.begin(self.asked.by_part)
        synchronise(self.device)
        self._cpu_s, self._started = cpu_seconds(), time.perf_counter()
        return self.asked

    def end(self) -> None:
        """The steps of the turn are done."""
        synchronise(self.device)
        turn = self.turn
        turn.seconds = time.perf_counter() - self._started
        turn.cpu_s = cpu_seconds() - self._cpu_s
        turn.memory_gib = memory_gib(self.device)
        turn.parts = self.parts.end(turn.seconds, turn.cpu_s)
        release_freed_memory(self.device)
        self.pipe.send(turn)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The trainer waits for data in here."""
        asked = time.perf_counter()
        with self.parts.part("data"):
            yield
        self.turn.data_wait_s += time.perf_counter() - asked

    def computed(self, sample_ids: list[str], useful: int, computed: int) -> None:
        """A micro-batch of these samples has `useful` tokens among the `computed` ones."""
        self.turn.sample_ids += sample_ids
        self.turn.useful_tokens += useful
        self.turn.computed_tokens += computed

    def loss(self, loss: float) -> None:
        """A step has ended with this loss."""
        self.turn.losses.append(loss)

    def step_ended(self) -> bool:
        """Count an optimizer step; whether it was the last of those asked for."""
        self.turn.steps += 1
        return self.turn.steps == self.asked.steps


def added(ranks: list[Turn]) -> Turn:
    """Return the turn of all ranks: work is summed, clocks and memory are those of the largest."""
    parts = {}
    for name in ranks[0].parts:
        parts[name] = sum(turn.parts[name] for turn in ranks)
    return Turn(
        seconds=max(turn.seconds for turn in ranks),
        cpu_s=sum(turn.cpu_s for turn in ranks),
        data_wait_s=max(turn.data_wait_s for turn in ranks),
        useful_tokens=sum(turn.useful_tokens for turn in ranks),
        computed_tokens=sum(turn.computed_tokens for turn in ranks),
        steps=ranks[0].steps,
        memory_gib=max(turn.memory_gib for turn in ranks),
        sample_ids=list(chain.from_iterable(turn.sample_ids for turn in ranks)),
        losses=ranks[0].losses,
        parts=parts,
    )


def cpu_seconds() -> float:
    """Return CPU seconds of this process and of its children, those that ended and those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children():
        try:
            taken = child.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended
            continue
        total += taken.user + taken.system
    return total


def release_freed_memory(device: torch.device) -> None:
    """Hand memory that nothing uses back to the machine, since the next trainer needs it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc has it
        libc.malloc_trim(0)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU; a CPU has nothing outstanding."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
