"""Ranks, reductions, and errors that all ranks raise together.

All functions also work without a process group (as one rank), so that tools and tests call the same
code as a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from pargo_ds.errors import OtherRankError

T = TypeVar("T")


_alone = False


def joined() -> bool:
    """Whether a process group exists, so that there are other ranks to wait for."""
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Within this context the process acts as the only rank and waits for no other. The other ranks
    may do something else meanwhile.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """Return the rank of this process. Before the process group exists, the launcher's environment
    gives it.
    """
    if _alone:
        return 0
    if joined():
        return dist.get_rank()
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return the number of ranks. Before the process group exists, the launcher's environment gives
    it.
    """
    if _alone:
        return 1
    if joined():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Return the rank of this process among those of its node."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes for all."""
    return rank() == 0


def barrier() -> None:
    """Wait until all ranks have come here."""
    if joined():
        dist.barrier()


def close_process_group(failed: bool = False) -> None:
    """Leave the process group; without it gloo's threads may abort at interpreter exit.

    A rank that failed does not leave a group of NCCL: ncclCommDestroy waits for the node's other
    ranks, which may wait for this one in another collective (torchtitan's pull request 1342).
    """
    if joined() and not (failed and dist.get_backend() == "nccl"):
        dist.destroy_process_group()


def all_reduce(values: list[float], device: torch.device | str, op: str = "sum") -> list[float]:
    """Reduce a few float64 numbers over all ranks in one collective; `op` is sum, max or min."""
    ops = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    if joined():
        dist.all_reduce(tensor, ops[op])
    return tensor.tolist()


def gather_numbers(
    values: Sequence[float | torch.Tensor], device: torch.device | str
) -> torch.Tensor:
    """Return `(ranks, values)` float64 on the CPU: the same numbers of every rank, in one
    collective.

    Scalars that already lie on `device` may be among them; the host waits once, for the result.
    """
    numbers = []
    for value in values:
        numbers.append(0.0 if isinstance(value, torch.Tensor) else value)
    own = torch.tensor(numbers, dtype=torch.float64).to(device)
    for place, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            own[place] = value
    if not joined():
        return own.cpu()[None]
    gathered = own.new_empty(world_size() * own.numel())
    dist.all_gather_into_tensor(gathered, own)
    return gathered.cpu().view(world_size(), -1)


def broadcast_object(value: T) -> T:
    """Return the object of rank 0 on every rank."""
    if not joined():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Return the objects of all ranks, in the order of the ranks, on every rank."""
    if not joined():
        return [value]
    gathered: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def run_on_all_ranks(action: Callable[[], T]) -> T:
    """Run `action` on every rank; if it fails on one rank, all ranks raise, so that none waits in a
    later collective. Collective.

    A rank on which `action` fails raises its own error. The others raise OtherRankError with the
    number and the message of the first rank that failed.
    """
    error: Exception | None = None
    result: T | None = None
    try:
        result = action()
    except Exception as caught:  # passed on below, on every rank
        error = caught
    own: str | None = None
    if error is not None:
        own = f"{type(error).__name__}: {error}"
    messages = gather_objects(own)
    if error is not None:
        raise error
    for failed, message in enumerate(messages):
        if message is not None:
            raise OtherRankError(f"rank {failed} failed: {message}")
    return cast("T", result)


def rank0_first(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and then on the other ranks: rank 0 builds a file of the cache, and
    the others read it. Collective.
    """
    if is_main():
        return run_on_all_ranks(action)
    run_on_all_ranks(lambda: None)
    return action()
