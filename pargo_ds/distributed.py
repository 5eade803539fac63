"""Ranks, reductions and errors that every rank raises together.

All functions work without a process group too (one rank), so that tools and tests call the same code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


_alone = False


def joined() -> bool:
    """Whether there are other ranks to wait for: a process group exists."""
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """In here this process is the only rank: nothing waits for the others, who do something else meanwhile."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """This process's rank; from the launcher's environment before the process group exists."""
    if _alone:
        return 0
    return dist.get_rank() if joined() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of ranks; from the launcher's environment before the process group exists."""
    if _alone:
        return 1
    return dist.get_world_size() if joined() else int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Rank within this node."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """True on the rank that prints and writes."""
    return rank() == 0


def barrier() -> None:
    if joined():
        dist.barrier()


def close_process_group() -> None:
    """Leave the process group; without it gloo's threads may abort at interpreter exit."""
    if joined():
        dist.destroy_process_group()


def all_reduce(values: list[float], device: torch.device | str, op: str = "sum") -> list[float]:
    """Reduce a few float64 numbers over all ranks in one collective; `op` is sum, max or min."""
    ops = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    if joined():
        dist.all_reduce(tensor, ops[op])
    return tensor.tolist()


def broadcast_object(value: T) -> T:
    """The object of rank 0, on every rank."""
    if not joined():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The objects of all ranks, in their order, on every rank."""
    if not joined():
        return [value]
    gathered: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


class OtherRankError(RuntimeError):
    """Raised on healthy ranks when another rank failed in `together`; carries that rank's message."""


def together(action: Callable[[], T]) -> T:
    """Run `action` on every rank; if it fails on any, every rank raises instead of waiting in a collective.

    The failing rank raises its own error, the others OtherRankError naming the rank and its message.
    """
    error: Exception | None = None
    result: T | None = None
    try:
        result = action()
    except Exception as caught:  # passed on below, on every rank
        error = caught
    if joined():
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, None if error is None else f"{type(error).__name__}: {error}")
    else:
        messages = [None if error is None else str(error)]
    if error is not None:
        raise error
    for failed, message in enumerate(messages):
        if message is not None:
            raise OtherRankError(f"rank {failed} failed: {message}")
    return result  # type: ignore[return-value]


def main_then_others(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 first and then on the others (first builds a cache file, the rest read it)."""
    result = together(action) if is_main() else together(lambda: None)
    return result if is_main() else action()
