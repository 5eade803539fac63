"""What is measured of a projector that learns: pure functions of a model, its gradients and its
batches.

Axis legend: visual tokens `(images, tokens, llm_dim)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pargo_ds.batch import Batch
from pargo_ds.model import ParGoForConditionalGeneration


def caption_gap(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the cross-entropy (nats per target token) with the right images and with those of the
    next sample in the pack.

    {"right", "wrong", "gap"}: gap = wrong - right is how much of the text the images decide.
    """
    right = wrong = 0.0
    for batch in batches:
        inputs = batch.model_inputs("cpu")
        right += float(model(**inputs, num_items_in_batch=1.0).loss)
        inputs["pixel_values"] = inputs["pixel_values"].roll(1, dims=0)
        wrong += float(model(**inputs, num_items_in_batch=1.0).loss)
    targets = max(1, sum(batch.num_targets for batch in batches))
    return {"right": right / targets, "wrong": wrong / targets, "gap": (wrong - right) / targets}


def image_share(tokens: torch.Tensor) -> float:
    """Return the share of the variance of visual tokens `(images, tokens, width)` that comes from
    the images, 0 to 1.

    The variance over images of each token, against that plus the variance of the tokens' means over
    images: 0 when every image gives the same tokens, 1 when tokens differ by nothing but their
    image.
    """
    tokens = tokens.float()
    of_images = tokens.var(dim=0, unbiased=False).mean()
    of_tokens = tokens.mean(dim=0).var(dim=0, unbiased=False).mean()
    return float(of_images / (of_images + of_tokens).clamp_min(1e-30))


class ImageShare:
    """image_share after each of the projector's layers (`layers.0`, ...) and of its output
    (`output`).
    """

    def __init__(self, model: ParGoForConditionalGeneration) -> None:
        self.model = model

    def measure(self, pixels: torch.Tensor) -> dict[str, float]:
        """Measure the shares for the images `(images, 3, height, width)` uint8; at least two."""
        found: dict[str, float] = {}

        def note(name: str, module: nn.Module, given: Any, out: torch.Tensor) -> None:
            found[name] = image_share(out)

        hooks = []
        for number, layer in enumerate(getattr(self.model.projector, "layers", [])):
            hooks.append(layer.register_forward_hook(partial(note, f"layers.{number}")))
        try:
            found["output"] = image_share(self.model.get_image_features(pixels))
        finally:
            for hook in hooks:
                hook.remove()
        return {name: round(value, 6) for name, value in found.items()}


def module_norms(model: nn.Module) -> dict[str, float]:
    """Return the norm of the gradient of each trained module, by name."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            module = module_of(name)
            squares[module] = squares.get(module, 0.0) + float(
                parameter.grad.float().square().sum()
            )
    return {module: round(square**0.5, 6) for module, square in squares.items()}


def updates(
    model: nn.Module, trained: Sequence[nn.Parameter], before: Sequence[torch.Tensor]
) -> dict[str, float]:
    """Return the norm of the last update of each trained module over the norm that its weights had;
    1.0 where that was 0.
    """
    old = {id(parameter): value for parameter, value in zip(trained, before, strict=True)}
    sums: dict[str, list[float]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in old:
            pair = sums.setdefault(module_of(name), [0.0, 0.0])
            pair[0] += float((parameter.detach() - old[id(parameter)]).square().sum())
            pair[1] += float(old[id(parameter)].square().sum())
    found = {}
    for module, (new, was) in sums.items():
        relative = float(new > 0)
        if was:
            relative = (new / was) ** 0.5
        found[module] = round(relative, 6)
    return found


def module_of(name: str) -> str:
    """Return the module that a parameter's figures are added to:
    `projector.layers.0.perception.query.weight` -> `layers.0.perception`; LoRA and other parts by
    their first name.
    """
    part, _, rest = name.partition(".")
    if part != "projector":
        return part
    pieces = rest.split(".")
    if pieces[0] == "layers":
        return ".".join(pieces[:3])
    return pieces[0]


def first_reaching(lines: Sequence[dict[str, Any]], gap: float) -> int | None:
    """Return the images after which the measured gap was at least `gap` for the first time; None
    when it never was.
    """
    return next((line["images"] for line in lines if line.get("gap", float("-inf")) >= gap), None)
