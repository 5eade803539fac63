"""What attention costs within a whole step of the projector, with one backend and another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

from pargo_ds.model import ParGoProjectorConfig
from pargo_ds.model.attention import AttentionChoice, cascade_attention, partial_attention
from pargo_ds.model.projector_pargo import PargoLayer, PargoProjector
from pargo_ds.speed.timing import interleaved_medians

PARTIAL, GLOBAL, PATCHES, HEAD_DIM, DEPTH = 288, 16, 576, 64, 6


def projector_share(
    backends: Sequence[str], width: int, images: int, device: torch.device
) -> dict[str, Any]:
    """Return the milliseconds, forward + backward in fp32, of the projector and of its attention
    alone, per partial backend.

    The paper's sizes (288 partial and 16 global tokens over 576 patches), six layers with heads of
    64, patches and visual tokens as wide as the projector; only `partial` differs between the rows.
    All calls take turns in one measurement.
    """
    heads = width // HEAD_DIM
    config = ParGoProjectorConfig(
        partial_tokens=PARTIAL,
        global_tokens=GLOBAL,
        layers=DEPTH,
        width=width,
        heads=heads,
        ffn_width=4 * width,
    )
    torch.manual_seed(0)
    projector = PargoProjector(config, width, width, PATCHES).to(device)
    patches = torch.randn(images, PATCHES, width, device=device)
    calls: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys(backends):
        choice = AttentionChoice(partial=name)
        calls[f"projector {name}"] = _whole(projector, choice, patches)
        parts = _attention(projector, choice, images, heads, device)
        calls |= {f"{part} {name}": call for part, call in parts.items()}
    medians = interleaved_medians(calls, device, repetitions=3)
    rows = []
    for name in dict.fromkeys(backends):
        whole, partial = medians[f"projector {name}"], medians[f"partial {name}"] * DEPTH
        attention = partial + medians[f"global {name}"] * DEPTH + medians[f"cascade {name}"]
        rows.append(
            {
                "backend": name,
                "projector_ms": whole,
                "attention_ms": attention,
                "attention_share": attention / whole,
                "partial_ms": partial,
                "partial_share": partial / whole,
            }
        )
    sizes = f"B={images}, {DEPTH} layers, width {width}, {heads} heads"
    return {"shape": f"{sizes}, {PARTIAL} + {GLOBAL} tokens, {PATCHES} patches", "rows": rows}


def _whole(
    projector: PargoProjector, choice: AttentionChoice, patches: torch.Tensor
) -> Callable[[], object]:
    wanted = list(projector.parameters())

    def call() -> object:
        projector.set_attention(choice)
        return torch.autograd.grad(projector(patches).sum(), wanted)

    return call


def _attention(
    projector: PargoProjector,
    choice: AttentionChoice,
    images: int,
    heads: int,
    device: torch.device,
) -> dict[str, Callable[[], object]]:
    """Attention calls by themselves, on tensors laid out as the projections leave them: partial and
    global of one layer (all layers' are alike), the cascades of all layers.
    """

    def draw(tokens: int) -> torch.Tensor:
        return (
            torch.randn(images, tokens, heads, HEAD_DIM, device=device)
            .transpose(1, 2)
            .requires_grad_()
        )

    q_partial, q_global, k, v = draw(PARTIAL), draw(GLOBAL), draw(PATCHES), draw(PATCHES)
    own_q, own_k, own_v = draw(PARTIAL), draw(PARTIAL), draw(PARTIAL)
    groups = cast("PargoLayer", projector.layers[0]).perception.groups

    def partial() -> object:
        out = partial_attention(q_partial, k, v, groups, choice.partial, choice.provider)
        return torch.autograd.grad(out, (q_partial, k, v), torch.ones_like(out))

    def over_all() -> object:
        out = F.scaled_dot_product_attention(q_global, k, v)
        return torch.autograd.grad(out, (q_global, k, v), torch.ones_like(out))

    def cascades() -> None:
        for layer in range(1, DEPTH + 1):
            out = cascade_attention(
                own_q, own_k, own_v, layer, DEPTH, "shifted", choice.cascade, choice.provider
            )
            torch.autograd.grad(out, (own_q, own_k, own_v), torch.ones_like(out))

    return {"partial": partial, "global": over_all, "cascade": cascades}
