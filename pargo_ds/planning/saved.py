"""Bytes that autograd keeps for the backward pass, by torch's saved-tensor hooks at full size, on
tensors without data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pargo_ds.assembly.configs import build_meta_model
from pargo_ds.assembly.freezing import LINEAR, apply_freezing
from pargo_ds.config import RunConfig
from pargo_ds.model.llm import run_llm
from pargo_ds.planning.rehearsal import llm_on_fake_tensors
from pargo_ds.training import recompute


def saved_bytes(run: RunConfig, keeps_inputs: bool) -> tuple[float, float]:
    """Bytes that autograd keeps of a full pack in the run's precision: (of one layer of the LLM, of
    the projector and, where it trains, the vision encoder). Layers of one kind are alike: the mean.

    `keeps_inputs`: DeepSpeed's linear layers under ZeRO-3 keep their inputs for a frozen weight,
    too, which torch's do not.
    """
    model = build_meta_model(run)
    apply_freezing(model, run.train)
    precision = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    nn.Module.to(model, precision)  # transformers hides the types of its own
    model.train()
    if keeps_inputs:
        for module in model.modules():
            if isinstance(module, LINEAR):
                module.weight.requires_grad_(True)
    batch, vision = run.batch, model.config.vision_config
    pixels = torch.zeros(
        batch.images_per_pack, 3, vision.image_size, vision.image_size,
        dtype=torch.uint8, device="meta",
    )  # fmt: skip
    features_train = run.train.vision.mode != "frozen"
    with torch.set_grad_enabled(features_train), _kept() as of_vision:
        features = model.vision(pixels)
    with _kept() as of_projector:
        kept_alive = [model.projector(features.to(next(model.projector.parameters()).dtype))]
    with llm_on_fake_tensors(model) as fake, fake:
        width = model.config.text_config.hidden_size
        dtype = next(model.llm.parameters()).dtype
        embeds = torch.empty(1, batch.tokens_per_pack, width, dtype=dtype, requires_grad=True)
        with _kept() as of_llm:
            kept_alive.append(run_llm(model.llm, embeds).last_hidden_state)
    weights = {_storage(p) for p in model.parameters()}
    layers = len(recompute.llm_layers(model))
    sums = [_total(kept, weights) for kept in (of_llm, of_projector, of_vision)]
    return sums[0] / layers, sums[1] + (sums[2] if features_train else 0.0)


def _storage(tensor: torch.Tensor) -> int:
    # fake and meta tensors have no address of data; torch's own memory tracker uses this name too
    return tensor.untyped_storage()._cdata


@contextmanager
def _kept() -> Iterator[dict[int, torch.Tensor]]:
    """In here every tensor that autograd saves is kept, by its storage."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(_storage(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _total(kept: dict[int, torch.Tensor], weights: set[int]) -> float:
    total = 0
    for key, tensor in kept.items():
        if key not in weights:
            total += tensor.untyped_storage().nbytes()
    return float(total)
