"""Hashes of the weights that a checkpoint does not hold, the same for any number of ranks and any ZeRO stage.

A tensor's hash is a sum over its elements, each mixed with its place, modulo 2^64: so ranks hash what they hold of it
and the sums are added up, without gathering a weight. Not made against forgery: it tells apart other weights, another
order and any changed bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn

from pargo_ds import distributed
from pargo_ds.checkpoint.manifest import CheckpointError

CHUNK = 1 << 22
"""Elements hashed at a time: the work needs some 30 bytes each."""
# Odd multipliers of splitmix64 (as signed numbers), whose products spread every bit.
FIRST, SECOND, STEP = -4658895280553007687, -7723592293110705685, -7046029254386353131
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def partial_hash(values: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Sum, an int64 that wraps, over the elements of a 1-D tensor that begins at element `start` of the whole one."""
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    bits = values.detach().contiguous().view(INTEGERS[values.element_size()])
    for begin in range(0, bits.numel(), CHUNK):
        piece = bits[begin : begin + CHUNK].to(torch.int64)
        places = torch.arange(start + begin + 1, start + begin + 1 + piece.numel(), device=piece.device)
        total += _mix(piece * FIRST + places * STEP).sum()
    return total


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ (x >> 30)) * FIRST
    x = (x ^ (x >> 27)) * SECOND
    return x ^ (x >> 31)


def describe(values: torch.Tensor, total: int) -> str:
    """How a hash stands in a manifest, such as `bfloat16 0123456789abcdef`."""
    return f"{str(values.dtype).removeprefix('torch.')} {total & (1 << 64) - 1:016x}"


def frozen_hashes(model: nn.Module) -> dict[str, str]:
    """Hash of every parameter that does not train and of every saved buffer, by name. Collective under ZeRO 3."""
    named = dict(_frozen_tensors(model))
    sums = torch.stack([_own_part(tensor, place) for place, tensor in enumerate(named.values())]) if named else None
    if sums is None:
        return {}
    if distributed.joined():
        dist.all_reduce(sums)
    return {name: describe(t, total) for (name, t), total in zip(named.items(), sums.tolist(), strict=True)}


def frozen_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Whole shape of every tensor that frozen_hashes hashes, by name."""
    return {name: list(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in _frozen_tensors(model)}


def check_frozen(found: Mapping[str, str], expected: Mapping[str, str], where: str) -> None:
    """CheckpointError naming the frozen weights that are not those of the checkpoint `where`."""
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if differing:
        shown = ", ".join(differing[:8]) + (f" and {len(differing) - 8} more" if len(differing) > 8 else "")
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
                yield f"{prefix}.{name}" if prefix else name, buffer


def _own_part(tensor: torch.Tensor, place: int) -> torch.Tensor:
    """This rank's share of a hash: its partition under ZeRO 3, else whole tensors dealt out over the ranks."""
    if hasattr(tensor, "ds_tensor"):
        length = tensor.ds_tensor.ds_numel
        start = dist.get_rank(group=tensor.ds_process_group) * length
        valid = max(0, min(length, tensor.ds_numel - start))
        return partial_hash(tensor.ds_tensor.detach()[:valid], start).to(_device(tensor))
    if place % distributed.world_size() != distributed.rank():
        return torch.zeros((), dtype=torch.int64, device=_device(tensor))
    return partial_hash(tensor.detach().reshape(-1)).to(_device(tensor))


def _device(tensor: torch.Tensor) -> torch.device:
    """Where the sums meet: the device of this process, wherever a weight may lie (offloaded, partitioned)."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
