"""Hashes of the frozen weights, which a checkpoint does not hold. A hash does not depend on the
number of ranks and the ZeRO stage.

The hash of a tensor is a sum modulo 2^64 over its elements, each of which is mixed with its place.
So each rank hashes the elements that it holds, and the sums are added, without gathering a weight.
The hash notices other weights, another order and any changed bit, but it is no protection against
forgery.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pargo_ds import distributed
from pargo_ds.errors import CheckpointError, listed

NAMES_SHOWN = 8
CHUNK = 1 << 22
"""Number of elements that are hashed at a time; hashing takes about 30 bytes for each element."""
# Odd multipliers of splitmix64 (as signed numbers), whose products spread every bit.
FIRST, SECOND, STEP = -4658895280553007687, -7723592293110705685, -7046029254386353131
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def partial_hash(values: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Return the sum, a wrapping int64, over the elements of a 1-D tensor. The tensor is a part of
    a whole one and begins at its element `start`.
    """
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    bits = values.detach().contiguous().view(INTEGERS[values.element_size()])
    for begin in range(0, bits.numel(), CHUNK):
        piece = bits[begin : begin + CHUNK].to(torch.int64)
        places = torch.arange(
            start + begin + 1, start + begin + 1 + piece.numel(), device=piece.device
        )
        total += _mix(piece * FIRST + places * STEP).sum()
    return total


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ (x >> 30)) * FIRST
    x = (x ^ (x >> 27)) * SECOND
    return x ^ (x >> 31)


def describe(values: torch.Tensor, total: int) -> str:
    """Return a hash in the form of a manifest, such as `bfloat16 0123456789abcdef`."""
    return f"{str(values.dtype).removeprefix('torch.')} {total & (1 << 64) - 1:016x}"


def frozen_hashes(model: nn.Module) -> dict[str, str]:
    """Return the hashes of all frozen parameters and saved buffers by name. Collective."""
    named = dict(_frozen_tensors(model))
    if not named:
        return {}
    sums = torch.stack([_own_part(tensor, place) for place, tensor in enumerate(named.values())])
    if distributed.joined():
        dist.all_reduce(sums)
    hashes = {}
    for (name, tensor), total in zip(named.items(), sums.tolist(), strict=True):
        hashes[name] = describe(tensor, total)
    return hashes


def check_frozen(found: Mapping[str, str], expected: Mapping[str, str], where: str) -> None:
    """Raise CheckpointError naming the frozen weights that differ from those of the checkpoint
    `where`.
    """
    names = found.keys() | expected.keys()
    differing = sorted(name for name in names if found.get(name) != expected.get(name))
    if differing:
        shown = listed(differing, NAMES_SHOWN)
        raise CheckpointError(
            f"{where} was trained beside other frozen weights than this run has: {len(differing)} of {len(expected)} "
            f"differ ({shown}). Put back the weights that manifest.json names under frozen_sources (the files of that "
            "name have changed, or another revision was fetched)"
        )


def _frozen_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}".removeprefix("."), buffer


def _own_part(tensor: Any, place: int) -> torch.Tensor:
    """Return this rank's part of a hash. Under ZeRO 3 it is the sum over the partition of the rank;
    otherwise each tensor is hashed by one of the ranks.

    `tensor` is Any, because DeepSpeed adds attributes to it.
    """
    if hasattr(tensor, "ds_tensor"):
        length = tensor.ds_tensor.ds_numel
        start = dist.get_rank(group=tensor.ds_process_group) * length
        valid = max(0, min(length, tensor.ds_numel - start))
        return partial_hash(tensor.ds_tensor.detach()[:valid], start).to(_device(tensor))
    if place % distributed.world_size() != distributed.rank():
        return torch.zeros((), dtype=torch.int64, device=_device(tensor))
    return partial_hash(tensor.detach().reshape(-1)).to(_device(tensor))


def _device(tensor: torch.Tensor) -> torch.device:
    """The device of this process, on which the sums are added. A weight itself may be elsewhere,
    for example offloaded.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
