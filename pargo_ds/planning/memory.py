"""Memory of a rank, by part, in bytes."""

from __future__ import annotations

from pargo_ds.assembly.freezing import PartCount
from pargo_ds.planning.gathers import ZeroSizes
from pargo_ds.planning.hardware import CONTEXT_GIB, FRAGMENTATION, Gpu
from pargo_ds.training.recompute import LOGIT_BYTES, Need
from pargo_ds.training.states import state_bytes

OF_DEVICE = ("fragmentation", "CUDA and NCCL")
"""Parts that torch does not count as allocated."""


def zero_bytes(
    rows: list[PartCount],
    stage: int,
    ranks: int,
    precision: str,
    sizes: ZeroSizes,
    live: int,
    fp32_sum: bool = False,
) -> dict[str, float]:
    """Of weights, gradients, optimizer, what is gathered and buckets; ZeRO-3 holds at most `live`
    weights whole. `fp32_sum`: gradients are added up in fp32.
    """
    size = 2 if precision == "bf16" else 4
    states = state_bytes(rows, stage, ranks, precision, {}, fp32_sum)
    del states["whole for a moment"]
    # ZeRO-2 fills one bucket while the other is reduced (overlap_comm)
    buckets = sizes.reduce_bucket * (2 if stage < 3 else 1)
    return {
        **states,
        "gathered": float(size * live if ranks > 1 else 0),
        "buckets": float(size * buckets),
    }


def pack_bytes(
    layer: float, layer_again: float, layers: int, rest: float, again: int
) -> dict[str, float]:
    """Of the activations of a pack with `again` of `layers` layers checkpointed, and of what one
    layer's backward pass needs beside them.
    """
    need = Need(states=0.0, layer=layer, layer_again=layer_again, layers=layers, rest=rest)
    return {"activations": need.total(again), "one layer's backward": layer}


def logit_bytes(targets: int, vocabulary: int) -> float:
    """Logits exist at targets only."""
    return float(targets * vocabulary * LOGIT_BYTES)


def device_bytes(parts: dict[str, float]) -> dict[str, float]:
    """`parts` with what the device itself takes."""
    lost, context = FRAGMENTATION * sum(parts.values()), CONTEXT_GIB * 2**30
    return {**parts, **dict(zip(OF_DEVICE, (lost, context), strict=True))}


def fits(parts: dict[str, float], gpu: Gpu) -> bool:
    """Whether all of `parts` have their place."""
    return sum(parts.values()) <= gpu.memory_gib * 2**30
