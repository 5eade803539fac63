"""What attention costs within one whole layer of the projector, with one backend and another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pargo_ds.model import ParGoProjectorConfig
from pargo_ds.model.attention import AttentionChoice, cascade_attention, global_attention, partial_attention
from pargo_ds.model.projector_pargo import PargoLayer
from pargo_ds.training.timing import interleaved_medians

PARTIAL, GLOBAL, PATCHES, HEAD_DIM, LAYER = 288, 16, 576, 64, 3


def layer_share(backends: Sequence[str], width: int, images: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds, forward + backward in fp32, of layer 3 of 6 and of its attention alone, for each partial backend.

    The paper's sizes (288 partial and 16 global tokens over 576 patches, heads of 64), patches as wide as the layer;
    only `partial` differs between the rows. All calls take turns in one measurement.
    """
    heads = width // HEAD_DIM
    config = ParGoProjectorConfig(
        partial_tokens=PARTIAL, global_tokens=GLOBAL, layers=6, width=width, heads=heads, ffn_width=4 * width
    )
    torch.manual_seed(0)
    layer = PargoLayer(config, width, PATCHES, LAYER).to(device)
    tokens = torch.randn(images, PARTIAL + GLOBAL, width, device=device, requires_grad=True)
    patches = torch.randn(images, PATCHES, width, device=device, requires_grad=True)
    calls: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys(backends):
        choice = AttentionChoice(partial=name)
        calls[f"layer {name}"] = _whole(layer, choice, tokens, patches)
        calls |= {f"{part} {name}": call for part, call in _attention(layer, choice, images, heads, device).items()}
    medians = interleaved_medians(calls, device, repetitions=3)
    rows = []
    for name in dict.fromkeys(backends):
        whole, partial = medians[f"layer {name}"], medians[f"partial {name}"]
        attention = partial + medians[f"global {name}"] + medians[f"cascade {name}"]
        rows.append(
            {
                "backend": name,
                "layer_ms": whole,
                "attention_ms": attention,
                "attention_share": attention / whole,
                "partial_ms": partial,
                "partial_share": partial / whole,
            }
        )
    sizes = f"B={images}, width {width}, {heads} heads"
    return {"shape": f"{sizes}, {PARTIAL} + {GLOBAL} tokens, {PATCHES} patches, layer {LAYER} of 6", "rows": rows}


def _whole(
    layer: PargoLayer, choice: AttentionChoice, tokens: torch.Tensor, patches: torch.Tensor
) -> Callable[[], object]:
    wanted = [tokens, patches, *layer.parameters()]

    def call() -> object:
        layer.cascade.attention = layer.perception.attention = choice
        return torch.autograd.grad(layer(tokens, patches).sum(), wanted)

    return call


def _attention(
    layer: PargoLayer, choice: AttentionChoice, images: int, heads: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """The layer's three attention calls by themselves, on tensors laid out as its projections leave them."""

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(images, tokens, heads, HEAD_DIM, device=device).transpose(1, 2).requires_grad_()

    q_partial, q_global, k, v = draw(PARTIAL), draw(GLOBAL), draw(PATCHES), draw(PATCHES)
    own = [draw(PARTIAL) for _ in range(3)]
    groups = layer.perception.groups

    def partial() -> object:
        out = partial_attention(q_partial, k, v, groups, choice.partial, choice.provider)
        return torch.autograd.grad(out, (q_partial, k, v), torch.ones_like(out))

    def over_all() -> object:
        out = global_attention(q_global, k, v)
        return torch.autograd.grad(out, (q_global, k, v), torch.ones_like(out))

    def cascade() -> object:
        out = cascade_attention(*own, LAYER, 6, "shifted", choice.cascade, choice.provider)
        return torch.autograd.grad(out, own, torch.ones_like(out))

    return {"partial": partial, "global": over_all, "cascade": cascade}
