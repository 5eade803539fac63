"""Partial tokens and their groups of patches, computed in four ways that mean the same: the mask of masks.py.

Axis legend: q and results `(rows, heads, groups, head_dim)`; k, v `(rows, heads, patches, head_dim)`, see groups.py.
"""

import torch
import torch.nn.functional as F

from .flash import flash_varlen
from .groups import PatchGroups, equal_lengths
from .kernels import DTYPES, available, fused_partial

# flash_varlen makes one sequence of each group. FlashAttention-2 puts sequences on a grid axis that CUDA limits, and
# its backward holds a float32 buffer of 128 rows per sequence and head.
GRID_LIMIT = 65_535
BACKWARD_BUFFER_LIMIT = 4 * 2**30
BACKWARD_ROWS = 128


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: PatchGroups, provider: str) -> torch.Tensor:
    """SDPA with the boolean mask: the oracle."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=groups.mask(q.device))


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: PatchGroups, provider: str) -> torch.Tensor:
    """The Triton kernel on CUDA; elsewhere, and in float64, the same arithmetic in torch."""
    if q.is_cuda and available() and q.dtype in DTYPES:
        return fused_partial(q, k, v, groups.bounds(q.device), groups.order(q.device), groups.longest)
    plan = equal_lengths(groups, q.device)
    # The projector's memory runs (rows, tokens, heads, head_dim); elementwise work is 3 x slower across it.
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if plan.patches is not None:
        k, v = (_Permute.apply(x, 1, plan.patches) for x in (k, v))
    if len(plan.runs) == 1:
        return _GroupAttention.apply(q, *(x.unflatten(1, plan.runs[0]) for x in (k, v))).transpose(1, 2)
    q = _Permute.apply(q, 1, plan.tokens)
    tokens, patches = [count for count, _ in plan.runs], [count * length for count, length in plan.runs]
    parts = zip(q.split(tokens, 1), k.split(patches, 1), v.split(patches, 1), plan.runs, strict=True)
    outputs = [_GroupAttention.apply(a, b.unflatten(1, run), c.unflatten(1, run)) for a, b, c, run in parts]
    return _Permute.apply(torch.cat(outputs, dim=1), 1, plan.back).transpose(1, 2)


class _Permute(torch.autograd.Function):
    """Put places of one axis into another order; backward is the inverse order, a plain read instead of sums."""

    @staticmethod
    def forward(ctx, x, dim, order):  # type: ignore[no-untyped-def]
        ctx.dim, ctx.order = dim, order
        return x.index_select(dim, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad.index_select(ctx.dim, ctx.order.argsort()), None, None


class _GroupAttention(torch.autograd.Function):
    """q `(rows, groups, heads, head_dim)` over k, v `(rows, groups, length, heads, head_dim)`; groups of one length.

    Elementwise: a batched product of 1 x length matrices is several times slower on a CPU. Backward needs only the
    weights, `(rows, groups, length, heads)`. Products are written into one buffer of k's size, again and again: fresh
    memory costs page faults, which took as long as the arithmetic.
    """

    @staticmethod
    def forward(ctx, q, k, v):  # type: ignore[no-untyped-def]
        products = q.unsqueeze(2) * k
        weights = torch.softmax(products.sum(-1) * q.shape[-1] ** -0.5, dim=2)
        ctx.save_for_backward(q, k, v, weights)
        return torch.mul(weights.unsqueeze(-1), v, out=products).sum(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):  # type: ignore[no-untyped-def]
        q, k, v, weights = ctx.saved_tensors
        q, dout = q.unsqueeze(2), dout.unsqueeze(2)
        products = dout * v
        slopes = products.sum(-1)
        slopes = weights * (slopes - (weights * slopes).sum(2, keepdim=True)) * q.shape[-1] ** -0.5
        slopes, weights = slopes.unsqueeze(-1), weights.unsqueeze(-1)
        dq = torch.mul(slopes, k, out=products).sum(2)
        dk = torch.mul(slopes, q, out=products)
        return dq, dk, weights * dout


def flash_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: PatchGroups, provider: str) -> torch.Tensor:
    """One sequence per row: each query stands at the end of its group, behind empty ones, and looks at a window of the
    group's length. The empty rows get no output gradient, so dk and dv are untouched. Groups must be even."""
    length = groups.longest
    k, v = _in_order(k, v, groups)
    spread = F.pad(q.unsqueeze(3), (0, 0, length - 1, 0)).flatten(2, 3)  # (rows, heads, patches, head_dim)
    rows, patches = q.shape[0], k.shape[2]
    ends = torch.arange(rows + 1, device=q.device, dtype=torch.int32) * patches
    out = flash_varlen(
        _tokens(spread), _tokens(k), _tokens(v), ends, ends, patches, patches, window=(length - 1, 0), provider=provider
    )
    return out.unflatten(0, (rows, -1, length))[:, :, -1].transpose(1, 2)


def flash_varlen_groups(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: PatchGroups, provider: str
) -> torch.Tensor:
    """One sequence per partial token: 1 query, the patches of its group.

    Raises:
        ValueError: more sequences than FlashAttention's grid holds, or too large a buffer in backward.
    """
    rows, heads, count, head_dim = q.shape
    check_varlen_limits(rows * count, heads, head_dim, torch.is_grad_enabled() and q.requires_grad)
    k, v = _in_order(k, v, groups)
    ends_q = torch.arange(rows * count + 1, device=q.device, dtype=torch.int32)
    starts = torch.arange(rows, device=q.device, dtype=torch.int32)[:, None] * k.shape[2]
    inner = (starts + groups.bounds(q.device)[None, :-1]).flatten()
    ends_k = F.pad(inner, (0, 1), value=rows * k.shape[2])
    out = flash_varlen(_tokens(q), _tokens(k), _tokens(v), ends_q, ends_k, 1, groups.longest, provider=provider)
    return out.unflatten(0, (rows, count)).transpose(1, 2)


def check_varlen_limits(sequences: int, heads: int, head_dim: int, training: bool) -> None:
    """ValueError when one FlashAttention sequence per partial token cannot work, with the numbers."""
    if sequences > GRID_LIMIT:
        raise ValueError(
            f"attention.partial: flash_varlen makes one sequence of each partial token, {sequences} here (pictures x "
            f"partial tokens), and the grid of FlashAttention holds {GRID_LIMIT}. Take flash_window or fused, or "
            "fewer pictures per pack"
        )
    buffer = (sequences * (1 + BACKWARD_ROWS)) * heads * -(-head_dim // 32) * 32 * 4
    if training and buffer > BACKWARD_BUFFER_LIMIT:
        raise ValueError(
            f"attention.partial: flash_varlen with {sequences} sequences (pictures x partial tokens) of {heads} heads "
            f"of {head_dim} needs a float32 buffer of {buffer / 2**30:.1f} GiB in FlashAttention-2's backward; more "
            f"than {BACKWARD_BUFFER_LIMIT / 2**30:.0f} GiB is refused. Take flash_window or fused, or fewer pictures "
            "per pack"
        )


def _in_order(k: torch.Tensor, v: torch.Tensor, groups: PatchGroups) -> tuple[torch.Tensor, torch.Tensor]:
    order = groups.order(k.device)
    return (k, v) if order is None else (_Permute.apply(k, 2, order), _Permute.apply(v, 2, order))


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """`(rows, heads, tokens, head_dim)` -> `(rows * tokens, heads, head_dim)`."""
    return x.transpose(1, 2).flatten(0, 1)


BACKENDS = {"dense": dense, "fused": fused, "flash_window": flash_window, "flash_varlen": flash_varlen_groups}
