"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from pargo_ds.config import PARTS, PartSection, RunConfig
from pargo_ds.model.projector_pargo import ScaledLinear


def parameter_groups(model: nn.Module, run: RunConfig) -> list[dict]:
    """Groups of trainable parameters: per part and scale of the learning rate, with and without weight decay (vectors
    have none). A group's `lr_scale` multiplies the part's rate.

    Empty groups are left out: DeepSpeed drops them and then disagrees with whoever counted them.
    """
    groups = []
    for part in PARTS:
        section: PartSection = getattr(run.train, part)
        trained = [p for p in getattr(model, part).parameters() if p.requires_grad]
        scales = output_scales(getattr(model, part)) if section.output_lr == "scaled" else {}
        for scale in sorted({scales.get(id(p), 1.0) for p in trained}, reverse=True):
            for decays in (True, False):
                members = [p for p in trained if is_matrix(p) == decays and scales.get(id(p), 1.0) == scale]
                if members:
                    decay = section.weight_decay if decays else 0.0
                    name = f"{part}.{'matrices' if decays else 'vectors'}"
                    group = {"params": members, "lr": section.lr, "weight_decay": decay, "name": name}
                    groups.append(group | {"lr_scale": scale})
    return groups


def output_scales(part: nn.Module) -> dict[int, float]:
    """id of a parameter -> factor of its learning rate, for layers that start below unit scale.

    Adam moves each weight by about the learning rate, whatever its size. The layer that writes visual tokens at the
    deviation s of the word embeddings has weights s times smaller than its neighbours: at their rate it would be thrown
    far from its start within the first steps. With s times the rate it moves as a unit layer under a factor s would.
    """
    return {
        id(parameter): module.output_std
        for module in part.modules()
        if isinstance(module, ScaledLinear)
        for parameter in module.parameters(recurse=False)
    }


def is_matrix(parameter: torch.Tensor) -> bool:
    """True for weights of two axes or more; ZeRO-3 keeps the real shape in `ds_shape`."""
    return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2


def lr_at(step: int, total_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then a cosine from `peak` to `floor` at the last step.

    Example: total 10, warm-up 2 -> steps 0, 1 are peak/2, peak; step 9 is floor.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    span = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / span)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(groups: list[dict], run: RunConfig, step: int, total_steps: int) -> dict[str, float]:
    """Write step `step`'s learning rates into the optimizer's groups; returns them by part."""
    rates = {}
    for group in groups:
        part = group["name"].split(".")[0]
        section: PartSection = getattr(run.train, part)
        rates[part] = lr_at(step, total_steps, run.train.warmup_steps, section.lr, section.min_lr)
        group["lr"] = rates[part] * group["lr_scale"]
    return rates
