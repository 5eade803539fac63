"""What ZeRO-3 gathers at once: whole layers instead of each module.

DeepSpeed runs hooks around each module and gathers the weights of that module; for a decoder layer
these are fourteen modules, forward and backward, and at short rows the hooks take longer than the
GPU's work. A layer marked as a leaf is gathered once, by one pair of hooks. Numbers stay the same
within rounding (tests/training/test_levers.py): in bf16, too, losses and gradient norms of 10 steps
were those of modules to every digit, frozen and in full, with DeepSpeed's own linear layers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from pargo_ds.assembly.freezing import numel
from pargo_ds.model import ParGoForConditionalGeneration

KEPT_WHOLE = 0
"""Size up to which ZeRO-3 keeps a weight whole between updates. Beside its layer a small weight
costs no collective of its own, while DeepSpeed 0.19.8 gathers each kept one alone at every update
(measured, eight tiny layers with all weights kept: 206 gathers).
"""
LIVE = 1_000_000_000
"""DeepSpeed's default of the weights that may be whole at a time."""


def layers_to_gather(model: ParGoForConditionalGeneration) -> list[nn.Module]:
    """Return the repeated layers of vision, projector and LLM that may be leaves, freezing applied."""
    layers: list[nn.Module] = []
    for part in _parts(model):
        layers += leaf_layers(part)
    return layers


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _parts(model: ParGoForConditionalGeneration) -> list[nn.Module]:
    """The parts whose layers may be leaves: not an LLM that trains on inputs which need no
    gradient, see `watch_inputs`.
    """
    parts: list[nn.Module] = [model.vision, model.projector]
    before_llm = (model.projector, model.get_input_embeddings())
    if not _trains(model.llm) or any(map(_trains, before_llm)):
        parts.append(model.llm)
    return parts


def leaf_layers(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules of which a list has several of one class, but those that share a
    weight with a module outside: its gradient would be reduced before all of it is there.
    """
    uses = _uses(model)
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        children = list(module.children())
        repeated = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1
        if repeated and len({type(child) for child in children}) == 1:
            found.extend(child for child in children if _is_apart(child, uses))
        else:
            for child in children:
                visit(child)

    visit(model)
    return found


def _uses(module: nn.Module) -> Counter[int]:
    """The number of modules that hold each weight, by the weight's id."""
    uses: Counter[int] = Counter()
    for inner in module.modules():
        uses.update(map(id, inner.parameters(recurse=False)))
    return uses


def _is_apart(layer: nn.Module, uses: Counter[int]) -> bool:
    inside = _uses(layer)
    return bool(inside) and all(uses[weight] == count for weight, count in inside.items())


def gather_sizes(layers: list[nn.Module]) -> dict[str, int]:
    """Return ZeRO-3's sizes, in weights, with which a layer is fetched in one piece while the one
    before it computes.
    """
    largest = max((sum(map(numel, layer.parameters())) for layer in layers), default=0)
    return {
        "stage3_prefetch_bucket_size": largest,
        "stage3_max_live_parameters": max(LIVE, 3 * largest),
    }


def described(layers: list[nn.Module]) -> str:
    """Return a line for the log."""
    kinds = Counter(type(layer).__name__ for layer in layers)
    shown = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    return f"ZeRO-3 gathers whole layers: {shown or 'none'}"


def watch_inputs(layers: list[nn.Module]) -> None:
    """Let each layer that trains raise ValueError when no positional input of it needs a gradient.

    DeepSpeed 0.19.8 reduces the gradients of a leaf when the gradient of its input is there; with
    an input that needs none it would do so before they exist.
    """
    for layer in layers:
        if _trains(layer):
            layer.register_forward_pre_hook(_input_needs_gradient)


def _input_needs_gradient(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    needs = (isinstance(one, torch.Tensor) and one.requires_grad for one in inputs)
    if torch.is_grad_enabled() and layer.training and not any(needs):
        raise ValueError(
            f"{type(layer).__name__} trains, but no positional input of it needs a gradient, and "
            "ZeRO-3 would reduce its gradients too early; set train.zero3_gather: modules"
        )
