"""Bytes of a model's states on one rank: weights, gradients, optimizer."""

from __future__ import annotations

from typing import Any

from pargo_ds.assembly.freezing import PartCount
from pargo_ds.config import RunConfig

LIVE, BUCKET = 1_000_000_000, 500_000_000
"""DeepSpeed's defaults, in weights: those that ZeRO-3 holds whole at a time, and those whose
gradients are reduced together.
"""


def adds_in_fp32(run: RunConfig, stage: int, ranks: int) -> bool:
    """Whether a bf16 run adds up its gradients in fp32 under this ZeRO stage; never under ZeRO-1, for
    which DeepSpeed 0.19.8 would then take another optimizer, whose state checkpoints cannot read.
    """
    word = run.train.gradient_accumulation
    if run.train.precision != "bf16" or word == "bf16" or stage == 1:
        return False
    return word == "fp32" or run.micro_batches(ranks) > 1


def state_bytes(
    rows: list[PartCount],
    stage: int,
    ranks: int,
    precision: str,
    zero: dict[str, Any],
    fp32_sum: bool,
) -> dict[str, float]:
    """Return the bytes by kind, for a freeze table under a ZeRO stage with the settings `zero`;
    `whole` is what is held for a moment. `fp32_sum`: gradients are added up in fp32.
    """
    total, trained = sum(r.total for r in rows), sum(r.trainable for r in rows)
    size, of_optimizer = 4, 8
    if precision == "bf16":
        size, of_optimizer = 2, 12  # the optimizer also holds weights in fp32
    share = dict.fromkeys((1, 2, 3), 1)
    for at in range(1, stage + 1):
        share[at] = ranks
    whole = 0
    if ranks > 1:
        whole = min(trained, zero.get("reduce_bucket_size", BUCKET))
    if stage == 3:
        whole += min(total, zero.get("stage3_max_live_parameters", LIVE))
    return {
        "weights": size * total / share[3],
        "gradients": (4 if fp32_sum else size) * trained / share[2],
        "optimizer": of_optimizer * trained / share[1],
        "whole for a moment": float(size * whole),
    }
