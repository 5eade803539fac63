"""What ZeRO-3 gathers in a micro-step, replayed: which weights together, and what it then holds.

A replay of DeepSpeed 0.19.8's bookkeeping (runtime/zero/partitioned_param_coordinator.py) over the
order of a rehearsal: a module's own weights are fetched, then the next ones ahead of time up to a
bucket, and weights are given back unless they are used again soon. tests/planning holds it beside
the collectives of real runs, count by count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pargo_ds.planning.rehearsal import Event, Rehearsal


@dataclass(frozen=True)
class ZeroSizes:
    """Sizes of ZeRO in weights, by the names of DeepSpeed's defaults."""

    prefetch: int = 50_000_000
    live: int = 1_000_000_000
    reuse: int = 1_000_000_000
    persistent: int = 100_000
    """Weights up to this size stay whole between updates."""
    reduce_bucket: int = 500_000_000

    @classmethod
    def of(cls, zero: dict[str, Any], defaults: dict[str, int]) -> ZeroSizes:
        """From the section zero_optimization; `defaults` is what the run sets where it is silent."""
        own = cls()
        names = {
            "prefetch": "stage3_prefetch_bucket_size",
            "live": "stage3_max_live_parameters",
            "reuse": "stage3_max_reuse_distance",
            "persistent": "stage3_param_persistence_threshold",
            "reduce_bucket": "reduce_bucket_size",
        }
        values = {}
        for size, key in names.items():
            silent = defaults.get(key, getattr(own, size))
            values[size] = int(zero.get(key, silent))
        return cls(**values)


@dataclass(frozen=True)
class MicroStep:
    """What one micro-step communicates of weights and gradients, in weights."""

    forward: tuple[int, ...]
    """Sizes of the gathers of the forward pass, one for each collective."""
    backward: tuple[int, ...]
    reductions: tuple[int, ...]
    """Sizes of the gradient buckets that are reduced together."""
    most_live: int
    """Most weights that were whole at one time."""

    @property
    def collectives(self) -> int:
        return len(self.forward) + len(self.backward) + len(self.reductions)


@dataclass
class _Coordinator:
    """The state of DeepSpeed's coordinator; `weights` are numbers with sizes."""

    rehearsal: Rehearsal
    sizes: ZeroSizes
    whole: set[int] = field(default_factory=set)
    active: dict[int, set[int]] = field(default_factory=dict)
    fetched_for: dict[int, int] = field(default_factory=dict)
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    step: int = 0
    available: int = 0
    gathers: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    most_live: int = 0

    def __post_init__(self) -> None:
        self.numel = {w.number: w.numel for w in self.rehearsal.weights()}
        self.of = []
        for module in self.rehearsal.modules:
            self.of.append([weight.number for weight in module])
        self.kept = {number for number, n in self.numel.items() if n <= self.sizes.persistent}
        self.order = [event.module for event in self.rehearsal.events if event.fetch]
        self.inside = _numbers_inside(self.rehearsal)
        self.whole |= self.kept

    def start(self) -> None:
        """A forward pass begins."""
        self.queue = deque()
        for step, module in enumerate(self.order):
            self.queue.extend((number, step) for number in sorted(self.of[module]))
        self.fetched_for, self.step, self.available = {}, 0, 0
        self.gathers = ([], [])

    def gather(self, numbers: set[int], forward: bool) -> None:
        missing = numbers - self.whole
        if missing:
            size = sum(self.numel[number] for number in missing)
            self.gathers[0 if forward else 1].append(size)
            self.available += size
            self.whole |= missing
            self.most_live = max(self.most_live, sum(self.numel[n] for n in self.whole))

    def fetch(self, module: int, forward: bool) -> None:
        needed = set(self.of[module])
        self.gather(needed, forward)
        for number in needed:
            self.active.setdefault(number, set()).add(module)
        unmet = {n for n in needed if self.fetched_for.get(n, -1) < self.step}
        met: set[int] = set()
        while self.queue and len(met) < len(unmet):
            number, used = self.queue.popleft()
            self.fetched_for[number] = used
            met.add(number)
        self.prefetch(forward)
        self.step += 1

    def prefetch(self, forward: bool) -> None:
        room = min(self.sizes.live - self.available, self.sizes.prefetch)
        ahead: set[int] = set()
        while self.queue and sum(self.numel[n] for n in ahead) < room:
            number, used = self.queue.popleft()
            self.fetched_for[number] = max(self.fetched_for.get(number, -1), used)
            if number not in self.whole:
                ahead.add(number)
        self.gather(ahead, forward)

    def release(self, module: int) -> None:
        going = set(self.of[module]) - self.kept
        going = {n for n in going if self.fetched_for.get(n, -1) <= self.step}
        for number in self.of[module]:
            self.active.get(number, set()).discard(module)
        leaf = module in self.rehearsal.leaves
        passed = 0
        for later in self.order[self.step :]:
            if passed >= self.sizes.reuse or not going:
                break
            for number in self.inside[later] if leaf else self.of[later]:
                going.discard(number)
                passed += self.numel[number]
        for number in going:
            if number in self.whole and not self.active.get(number):
                self.whole.discard(number)
                self.available -= self.numel[number]


def _numbers_inside(rehearsal: Rehearsal) -> list[list[int]]:
    """Of each module the weights in it and below it: DeepSpeed looks so far when it releases a
    leaf. A module's number comes before those of its children, see Rehearsal.depths.
    """
    inside = []
    for first, depth in enumerate(rehearsal.depths):
        numbers: dict[int, None] = {}
        for number in range(first, len(rehearsal.depths)):
            if number > first and rehearsal.depths[number] <= depth:
                break
            numbers.update(dict.fromkeys(w.number for w in rehearsal.modules[number]))
        inside.append(list(numbers))
    return inside


def replay(rehearsal: Rehearsal, sizes: ZeroSizes) -> tuple[MicroStep, MicroStep]:
    """ZeRO-3's first micro-step after an update, and a later one of the same optimizer step."""
    state = _Coordinator(rehearsal, sizes)
    buckets = reductions(rehearsal, sizes.reduce_bucket)
    found = []
    for _ in range(2):
        state.start()
        for event in rehearsal.events:
            if event.fetch:
                state.fetch(event.module, event.forward)
            else:
                state.release(event.module)
        _leftovers(state, rehearsal.events)
        forward, backward = (tuple(numels) for numels in state.gathers)
        found.append(MicroStep(forward, backward, buckets, state.most_live))
    return found[0], found[1]


def _leftovers(state: _Coordinator, events: Sequence[Event]) -> None:
    """Modules whose backward pass has no end that hooks see are released after it."""
    ended = {e.module for e in events if not e.fetch and not e.forward}
    for module in {e.module for e in events if e.fetch and not e.forward} - ended:
        for number in state.of[module]:
            state.active.get(number, set()).discard(module)
            if number not in state.kept and not state.active.get(number):
                state.whole.discard(number)


def reductions(rehearsal: Rehearsal, bucket: int) -> tuple[int, ...]:
    """Sizes of the gradient buckets of a micro-step, in weights; a bucket is reduced when the next
    gradient has no place in it, and at the end.
    """
    order: dict[int, int] = {}
    for event in rehearsal.events:
        if event.fetch and not event.forward:
            for weight in reversed(rehearsal.modules[event.module]):
                if weight.trained:
                    order.pop(weight.number, None)  # a shared weight is ready with its last use
                    order[weight.number] = weight.numel
    return fill_buckets(list(order.values()), bucket)


def fill_buckets(sizes: Sequence[int], bucket: int) -> tuple[int, ...]:
    """Sums of consecutive sizes, none above `bucket` but a single size that is.

    Example: sizes 3 3 9 1, bucket 6 -> 6, 9, 1.
    """
    found: list[int] = []
    filled = 0
    for size in sizes:
        if filled and filled + size > bucket:
            found.append(filled)
            filled = 0
        filled += size
    return (*found, filled) if filled else tuple(found)
