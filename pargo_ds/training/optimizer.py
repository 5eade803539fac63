"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from pargo_ds.config import PARTS, PartSection, ProjectorTraining, RunConfig


def parameter_groups(model: nn.Module, run: RunConfig) -> list[dict]:
    """Groups of trainable parameters: per part and learning rate, with and without weight decay (vectors have none).

    A group's `lr_scale` is its peak rate over the part's. Empty groups are left out: DeepSpeed drops them and then
    disagrees with whoever counted them.
    """
    groups = []
    for part in PARTS:
        section: PartSection = getattr(run.train, part)
        trained = [(name, p) for name, p in getattr(model, part).named_parameters() if p.requires_grad]
        scales = {name: lr_scale(name, section) for name, _ in trained}
        for scale in dict.fromkeys(scales.values()):
            for decays in (True, False):
                members = [p for name, p in trained if is_matrix(p) == decays and scales[name] == scale]
                if members:
                    decay = section.weight_decay if decays else 0.0
                    name = f"{part}.{'matrices' if decays else 'vectors'}"
                    group = {"params": members, "lr": section.lr, "weight_decay": decay, "name": name}
                    groups.append(group | {"lr_scale": scale})
    return groups


def lr_scale(name: str, section: PartSection) -> float:
    """Peak learning rate of a parameter `name` of a part, over the part's own.

    Adam moves each weight by about its rate, whatever its size, so modules that add up to the same visual tokens need
    rates of their own (docs/learning.md).
    """
    if not isinstance(section, ProjectorTraining) or section.lr is None:
        return 1.0
    if name.startswith("output.soft_prompt."):
        return (section.soft_prompt_lr or section.lr) / section.lr
    if name.startswith("output."):
        return (section.output_lr or section.lr) / section.lr
    return 1.0


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
