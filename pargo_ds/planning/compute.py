"""Seconds of a GPU in a micro-step: products at a part of the peak, the rest by its traffic."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from pargo_ds.config import RunConfig
from pargo_ds.planning.hardware import OF_BANDWIDTH, OF_LARGE, Gpu
from pargo_ds.planning.load import Load
from pargo_ds.training.meters import FlopModel
from pargo_ds.training.recompute import Recompute

PARTS = {
    "llm": ("llm_per_token", "llm_head_per_target"),
    "attention": ("llm_attention_per_square",),
    "vision": ("vision_per_image",),
    "projector": ("projector_per_image",),
}
"""Part -> its fields of FlopModel."""
TOUCHES = 8.0
"""How often a number that is saved for backward passes through memory in elementwise operators of
both passes: written, read by the next operator, read in backward, its gradient written and read
makes 5; what is not saved (casts to float32, halves of rotary embeddings, residual sums) the rest.
"""
UPDATE_BYTES = 40
"""Of one trained weight in an update: weight, moments and gradient in float32 read, three written,
and its 16-bit copies; gradient clipping reads once more.
"""


@dataclass(frozen=True)
class Flops:
    """Of one micro-step, by part: what the model needs, and what is done with checkpointing."""

    model: dict[str, float]
    hardware: dict[str, float]


def micro_flops(flops: FlopModel, run: RunConfig, load: Load, again: Recompute) -> Flops:
    """As the meters count a batch, each part alone."""
    batch = load.batch()
    found = Flops({}, {})
    for part, names in PARTS.items():
        others = {field.name: 0.0 for field in fields(FlopModel) if field.name not in names}
        alone = replace(flops, **others)
        found.model[part], found.hardware[part] = alone.of_batch(batch, run, again=again)
    return found


def product_s(flops: Flops, gpu: Gpu) -> dict[str, float]:
    """Seconds of matrix products, by part."""
    large = gpu.of_peak * gpu.tflops * 1e12
    return {part: count / (OF_LARGE[part] * large) for part, count in flops.hardware.items()}


def traffic_s(saved: float, repeated: float, gpu: Gpu) -> float:
    """Seconds of elementwise operators: `saved` bytes that a whole pass saves, `repeated` bytes of
    them that checkpointing makes twice (half as much traffic: no backward).
    """
    return (TOUCHES * saved + TOUCHES / 2 * repeated) / (OF_BANDWIDTH * gpu.memory_gbs * 1e9)


def update_s(trained: float, gpu: Gpu) -> float:
    """Seconds of the optimizer for `trained` weights of this rank."""
    return trained * UPDATE_BYTES / (OF_BANDWIDTH * gpu.memory_gbs * 1e9)
