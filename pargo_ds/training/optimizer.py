"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from pargo_ds.config import RunConfig
from pargo_ds.train_sections import PARTS, PartSection, ProjectorTraining


def parameter_groups(model: nn.Module, run: RunConfig) -> list[dict]:
    """Return the groups of trainable parameters: per part and learning rate, with and without
    weight decay (vectors have none).

    A group's `lr_scale` is its peak rate over the part's. Empty groups are left out: DeepSpeed
    drops them and then disagrees with whoever counted them.
    """
    groups = []
    for part in PARTS:
        section: PartSection = getattr(run.train, part)
        named = getattr(model, part).named_parameters()
        trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        scales = {name: lr_scale(name, section) for name in trained}
        for scale in dict.fromkeys(scales.values()):
            of_scale = [parameter for name, parameter in trained.items() if scales[name] == scale]
            matrices = [parameter for parameter in of_scale if is_matrix(parameter)]
            vectors = [parameter for parameter in of_scale if not is_matrix(parameter)]
            for kind, members, decay in (
                ("matrices", matrices, section.weight_decay),
                ("vectors", vectors, 0.0),
            ):
                if members:
                    group = {
                        "params": members,
                        "lr": section.lr,
                        "weight_decay": decay,
                        "name": f"{part}.{kind}",
                    }
                    groups.append(group | {"lr_scale": scale})
    return groups


def lr_scale(name: str, section: PartSection) -> float:
    """Return the peak learning rate of a parameter `name` of a part, over the part's own.

    Adam moves each weight by about its rate, whatever its size, so modules that add up to the same
    visual tokens need rates of their own (docs/learning.md).
    """
    if not isinstance(section, ProjectorTraining) or section.lr is None:
        return 1.0
    if name.startswith("output.soft_prompt."):
        return (section.soft_prompt_lr or section.lr) / section.lr
    if name.startswith("output."):
        return (section.output_lr or section.lr) / section.lr
    return 1.0


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a weight has two axes or more; ZeRO-3 keeps the real shape in `ds_shape`."""
    return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2


def lr_at(step: int, total_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Return the learning rate of step `step` (from 0): a linear warm-up, then a cosine from `peak`
    to `floor` at the last step.

    Example: total 10, warm-up 2 -> steps 0, 1 are peak/2, peak; step 9 is floor.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    span = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / span)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(
    groups: list[dict], run: RunConfig, step: int, total_steps: int
) -> dict[str, float]:
    """Write step `step`'s learning rates into the optimizer's groups, and return them by part."""
    rates = {}
    for group in groups:
        part = group["name"].split(".")[0]
        section: PartSection = getattr(run.train, part)
        assert section.lr is not None  # PartSection has one for what trains
        rates[part] = lr_at(step, total_steps, run.train.warmup_steps, section.lr, section.min_lr)
        group["lr"] = rates[part] * group["lr_scale"]
    return rates
