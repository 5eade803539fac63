"""Activation checkpointing: which layers compute their activations again in the backward pass.

It costs a forward pass of each such layer, so `auto` takes as few as memory needs, by an estimate
that is said in the log.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from pargo_ds import distributed
from pargo_ds.assembly.freezing import LINEAR, freeze_table
from pargo_ds.assembly.zero import zero_stage
from pargo_ds.config import RunConfig
from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.training.states import adds_in_fp32, state_bytes

SAVED = 1.2
"""Numbers that a layer saves for its backward pass, over those that go in and out of its linear
layers. Measured with torch's saved-tensor hooks: Llama of 7B trained in full 1.20, frozen 0.85 to
1.09.
"""
LOGIT_BYTES = 10
"""Of one logit: in the run's precision, in float32 and its gradient."""
OF_DEVICE = 0.9
"""Part of a GPU's memory that a run may plan with: context, NCCL and fragmentation take the rest."""
OF_HOST = 0.8
"""The same of the host's memory that is free at the start, where there is no GPU."""


@dataclass(frozen=True)
class Recompute:
    """Layers with activation checkpointing."""

    layers: int = 0
    """So many of the LLM's, the first ones: what the last ones save is free again when the backward
    pass reaches them."""
    of: int = 1
    """Layers of the LLM."""
    projector: bool = False
    reason: str = "asked for"

    def __str__(self) -> str:
        projector = " and the projector" if self.projector else ""
        return f"activation checkpointing: {self.layers} of {self.of} layers{projector} ({self.reason})"


@dataclass(frozen=True)
class Need:
    """Bytes that a rank needs, by an estimate from above."""

    states: float
    """Weights, gradients and optimizer, with what ZeRO holds for a moment."""
    layer: float
    """Activations of one layer of the LLM over a full pack."""
    layer_again: float
    """What remains of them with checkpointing: its input."""
    layers: int
    rest: float
    """Activations of projector and trained vision, logits at every position."""

    def total(self, again: int) -> float:
        """Bytes with `again` layers under checkpointing."""
        return (
            self.states + self.rest + (self.layers - again) * self.layer + again * self.layer_again
        )


def decide(
    run: RunConfig,
    model: ParGoForConditionalGeneration,
    settings: dict[str, Any],
    device: torch.device,
) -> Recompute:
    """What `train.activation_checkpointing` means for this model (freezing applied) on these ranks.
    Collective.
    """
    asked, count = run.train.activation_checkpointing, len(llm_layers(model))
    if asked == "full":
        return Recompute(count, count, projector=True)
    if asked == "none":
        return Recompute(0, count)
    if asked != "auto":
        return Recompute(min(asked, count), count)
    need = estimate(run, model, settings)
    available = float(distributed.gather_numbers([memory_for(device)], device).min())
    return fewest(need, available)


def fewest(need: Need, available: float) -> Recompute:
    """As few layers as fit into `available` bytes; all, and the projector, where none do."""
    gib = 2**30
    said = (
        f"auto: about {need.total(0) / gib:.1f} GiB without it, {available / gib:.1f} GiB available"
    )
    over = need.total(0) - available
    if over <= 0:
        return Recompute(0, need.layers, reason=said)
    again = math.ceil(over / max(1.0, need.layer - need.layer_again))
    if again >= need.layers:
        return Recompute(need.layers, need.layers, projector=True, reason=said)
    return Recompute(again, need.layers, reason=said)


def estimate(
    run: RunConfig, model: ParGoForConditionalGeneration, settings: dict[str, Any]
) -> Need:
    """Memory of a rank with rows as full as `batch` allows."""
    size = 2 if run.train.precision == "bf16" else 4
    batch, config = run.batch, model.config
    stage, ranks = zero_stage(settings), distributed.world_size()
    states = state_bytes(
        freeze_table(model, run.train),
        stage,
        ranks,
        run.train.precision,
        settings.get("zero_optimization", {}),
        adds_in_fp32(run, stage, ranks),
    )
    layers = llm_layers(model)
    widths = max(map(linear_widths, layers))
    rows = batch.images_per_row * max(config.vision_config.num_patches, config.visual_tokens)
    seen = linear_widths(model.projector)
    if run.train.vision.mode != "frozen":
        seen += linear_widths(model.vision)
    logits = batch.tokens_per_row * config.text_config.vocab_size * LOGIT_BYTES
    return Need(
        states=sum(states.values()),
        layer=SAVED * widths * size * batch.tokens_per_row,
        layer_again=float(config.text_config.hidden_size * size * batch.tokens_per_row),
        layers=len(layers),
        rest=SAVED * seen * size * rows + logits,
    )


def llm_layers(model: ParGoForConditionalGeneration) -> list[nn.Module]:
    """The LLM's layers that transformers can checkpoint one by one; the LLM itself where it can
    only do so in all of them (older families).
    """
    layers = [m for m in model.llm.modules() if isinstance(m, GradientCheckpointingLayer)]
    return [*layers] or [model.llm]


def linear_widths(module: nn.Module) -> int:
    """Numbers that go in and out of a module's linear layers, for one row."""
    total = 0
    for linear in module.modules():
        if isinstance(linear, LINEAR):
            # Conv1D has other names for its sizes, and ZeRO-3 leaves a weight no shape but this
            total += sum(getattr(linear.weight, "ds_shape", linear.weight.shape))
    return total


def apply(model: ParGoForConditionalGeneration, recompute: Recompute) -> None:
    """Switch activation checkpointing on, in place."""
    if recompute.layers == 0:
        return
    model.gradient_checkpointing_enable()
    kept_off = list(llm_layers(model)[recompute.layers :])
    if not recompute.projector:
        kept_off += [*model.projector.modules(), *model.vision.modules()]
    for module in kept_off:
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False  # type: ignore[assignment]  # a plain attribute


def memory_for(device: torch.device) -> float:
    """Bytes that this rank may plan with: its GPU's, or its share of the host's free memory."""
    if device.type == "cuda":
        return OF_DEVICE * torch.cuda.get_device_properties(device).total_memory
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return OF_HOST * free * 1024 / ranks_here
