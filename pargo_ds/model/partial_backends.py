"""Attention of partial tokens to their groups of patches, in four ways with the same mask of
masks.py.

Axis legend: q and results `(images, heads, partial, head_dim)`; k, v `(images, heads, patches,
head_dim)`. `source` says what computes FlashAttention's rule (flash.py); two of the four use it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .flash import flash_varlen
from .groups import PatchGroups, equal_lengths
from .kernels import DTYPES, available, fused_partial

# flash_varlen makes one sequence of each group. FlashAttention-2 puts sequences on a grid axis that
# CUDA limits, and its backward holds a float32 buffer of 128 rows per sequence and head.
GRID_LIMIT = 65_535
BACKWARD_BUFFER_LIMIT = 4 * 2**30
BACKWARD_ROWS = 128


def dense(q: Tensor, k: Tensor, v: Tensor, groups: PatchGroups, source: str) -> Tensor:
    """Compute by SDPA with the boolean mask, the simplest of the four."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=groups.mask(q.device))


def fused(q: Tensor, k: Tensor, v: Tensor, groups: PatchGroups, source: str) -> Tensor:
    """Compute by the Triton kernel on CUDA; elsewhere, and in float64, by the same arithmetic in
    torch.
    """
    if q.is_cuda and available() and q.dtype in DTYPES:
        bounds, order = groups.bounds(q.device), groups.order(q.device)
        return fused_partial(q, k, v, bounds, order, groups.longest)
    plan = equal_lengths(groups, q.device)
    # The projector's memory runs (images, tokens, heads, head_dim). Elementwise work across it
    # takes three times as long.
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if plan.patches is not None:
        k, v = _Permute.apply(k, 1, plan.patches), _Permute.apply(v, 1, plan.patches)
    if len(plan.runs) == 1:
        return _run_of_groups(q, k, v, *plan.runs[0]).transpose(1, 2)
    q = _Permute.apply(q, 1, plan.tokens)
    tokens = [count for count, _ in plan.runs]
    patches = [count * length for count, length in plan.runs]
    parts = zip(q.split(tokens, 1), k.split(patches, 1), v.split(patches, 1), strict=True)
    outputs = [_run_of_groups(*part, *run) for part, run in zip(parts, plan.runs, strict=True)]
    return _Permute.apply(torch.cat(outputs, dim=1), 1, plan.back).transpose(1, 2)


def _run_of_groups(q: Tensor, k: Tensor, v: Tensor, count: int, length: int) -> Tensor:
    """`count` groups of `length` patches that lie one after another; tokens are on axis 1."""
    keys, values = k.unflatten(1, (count, length)), v.unflatten(1, (count, length))
    return _GroupAttention.apply(q, keys, values)


class _Permute(torch.autograd.Function):
    """Put one axis into another order; backward is the inverse order: reads instead of sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, order: Tensor) -> Tensor:
        ctx.dim, ctx.order = dim, order
        return x.index_select(dim, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(ctx.dim, ctx.order.argsort()), None, None


class _GroupAttention(torch.autograd.Function):
    """q `(images, groups, heads, head_dim)` over k, v `(images, groups, length, heads, head_dim)`.

    The groups have one length. Elementwise: a batched product of 1 x length matrices is several
    times slower on a CPU. Backward needs only the weights, `(images, groups, length, heads)`.
    Products are written into one buffer of k's size, again and again: fresh memory costs page
    faults, which took as long as the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        products = q.unsqueeze(2) * k
        weights = torch.softmax(products.sum(-1) * q.shape[-1] ** -0.5, dim=2)
        ctx.save_for_backward(q, k, v, weights)
        return torch.mul(weights.unsqueeze(-1), v, out=products).sum(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        q, dout = q.unsqueeze(2), dout.unsqueeze(2)
        products = dout * v
        slopes = products.sum(-1)
        slopes = weights * (slopes - (weights * slopes).sum(2, keepdim=True)) * q.shape[-1] ** -0.5
        slopes, weights = slopes.unsqueeze(-1), weights.unsqueeze(-1)
        dq = torch.mul(slopes, k, out=products).sum(2)
        dk = torch.mul(slopes, q, out=products)
        return dq, dk, weights * dout


def flash_window(q: Tensor, k: Tensor, v: Tensor, groups: PatchGroups, source: str) -> Tensor:
    """Compute by FlashAttention with one sequence per image; groups must be even.

    Each query stands at the end of its group, behind empty ones, and looks at a window of the
    group's length. The empty rows get no output gradient, so dk and dv are untouched.
    """
    length = groups.longest
    k, v = _in_order(k, v, groups)
    # (images, heads, patches, head_dim)
    spread = F.pad(q.unsqueeze(3), (0, 0, length - 1, 0)).flatten(2, 3)
    images, patches = q.shape[0], k.shape[2]
    ends = torch.arange(images + 1, device=q.device, dtype=torch.int32) * patches
    spread, k, v = (_tokens(x) for x in (spread, k, v))
    window = (length - 1, 0)
    out = flash_varlen(spread, k, v, ends, ends, patches, patches, window=window, source=source)
    return out.unflatten(0, (images, -1, length))[:, :, -1].transpose(1, 2)


def flash_varlen_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: PatchGroups,
    source: str,
) -> Tensor:
    """Compute by FlashAttention with one sequence per partial token: one query and the patches of
    its group.

    Raises:
        ValueError: more sequences than FlashAttention's grid holds, or too large a buffer in
            backward.
    """
    images, heads, count, head_dim = q.shape
    training = torch.is_grad_enabled() and q.requires_grad
    check_varlen_limits(images * count, heads, head_dim, training)
    k, v = _in_order(k, v, groups)
    ends_q = torch.arange(images * count + 1, device=q.device, dtype=torch.int32)
    starts = torch.arange(images, device=q.device, dtype=torch.int32)[:, None] * k.shape[2]
    inner = (starts + groups.bounds(q.device)[None, :-1]).flatten()
    ends_k = F.pad(inner, (0, 1), value=images * k.shape[2])
    q, k, v = (_tokens(x) for x in (q, k, v))
    out = flash_varlen(q, k, v, ends_q, ends_k, 1, groups.longest, source=source)
    return out.unflatten(0, (images, count)).transpose(1, 2)


def check_varlen_limits(sequences: int, heads: int, head_dim: int, training: bool) -> None:
    """Raise ValueError, with the numbers, when one sequence per partial token cannot work."""
    if sequences > GRID_LIMIT:
        raise ValueError(
            "attention.partial: flash_varlen makes one sequence of each partial token, "
            f"{sequences} here (images x partial tokens), and the grid of FlashAttention holds "
            f"{GRID_LIMIT}. Take flash_window or fused, or fewer images per pack"
        )
    buffer = (sequences * (1 + BACKWARD_ROWS)) * heads * -(-head_dim // 32) * 32 * 4
    if training and buffer > BACKWARD_BUFFER_LIMIT:
        raise ValueError(
            f"attention.partial: flash_varlen with {sequences} sequences (images x partial tokens) "
            f"of {heads} heads of {head_dim} needs a float32 buffer of {buffer / 2**30:.1f} GiB in "
            f"FlashAttention-2's backward; more than {BACKWARD_BUFFER_LIMIT / 2**30:.0f} GiB is "
            "refused. Take flash_window or fused, or fewer images per pack"
        )


def _in_order(k: Tensor, v: Tensor, groups: PatchGroups) -> tuple[Tensor, Tensor]:
    order = groups.order(k.device)
    if order is None:
        return k, v
    return _Permute.apply(k, 2, order), _Permute.apply(v, 2, order)


def _tokens(x: Tensor) -> Tensor:
    """`(images, heads, tokens, head_dim)` -> `(images * tokens, heads, head_dim)`."""
    return x.transpose(1, 2).flatten(0, 1)


BACKENDS = {
    "dense": dense,
    "fused": fused,
    "flash_window": flash_window,
    "flash_varlen": flash_varlen_groups,
}
