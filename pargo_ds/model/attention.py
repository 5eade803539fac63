"""The narrow door to the projector's attention: what is computed is fixed by masks.py, how is decided here.

Axis legend: q, k, v are `(images, heads, tokens, head_dim)`; `partial` tokens come before `global` ones.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F

from .masks import cascade_mask, partial_global_mask


@lru_cache(maxsize=64)
def _partial_mask(num_partial: int, num_global: int, num_patches: int, device: torch.device) -> torch.Tensor:
    # An inference tensor could not be saved for a later backward pass, so leave inference mode while building.
    with torch.inference_mode(False):
        return partial_global_mask(num_partial, num_global, num_patches).to(device)


@lru_cache(maxsize=256)
def _cascade_mask(num_partial: int, layer: int, depth: int, cascade: str, device: torch.device) -> torch.Tensor | None:
    with torch.inference_mode(False):
        mask = cascade_mask(num_partial, layer, depth, cascade)
        # Without a mask SDPA may pick a faster kernel.
        return None if bool(mask.all()) else mask.to(device)


def partial_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_partial: int) -> torch.Tensor:
    """PGP: partial tokens look at their group of patches, global tokens at all of them.

    q is `(images, heads, partial + global, head_dim)`, k and v are `(images, heads, patches, head_dim)`;
    returns the shape of q. Dropout is the caller's business.

    Raises:
        ValueError: more partial tokens than patches.
    """
    num_global = q.shape[2] - num_partial
    mask = _partial_mask(num_partial, num_global, k.shape[2], q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def cascade_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, depth: int, cascade: str = "shifted"
) -> torch.Tensor:
    """CPP: self-attention among the partial tokens under the window of `layer` (1-based) of `depth`.

    q, k, v and the result are `(images, heads, partial, head_dim)`.

    Raises:
        ValueError: unknown cascade, or a layer outside 1..depth.
    """
    mask = _cascade_mask(q.shape[2], layer, depth, cascade, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def global_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Plain attention without a mask; the `release` cascade uses it among the global tokens."""
    return F.scaled_dot_product_attention(q, k, v)
