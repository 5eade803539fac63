"""Triton: attention of each partial token to its own group of patches, forward and backward in one
pass each.

Under one FLOP per byte, so the kernels only have to read k and v once: a program holds a block of
groups and walks over their patches with a running softmax in float32. Backward computes the weights
again. Each patch belongs to exactly one group, so dk and dv are written once, without atomics: two
runs are bit-equal.

Axis legend: q `(rows, heads, groups, head_dim)`; k, v `(rows, heads, patches, head_dim)`; group i
holds the patches `order[bounds[i] : bounds[i + 1]]`.
"""

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def available() -> bool:
    """Whether Triton is installed."""
    return triton is not None


if triton is not None:
    # Below every score, yet finite: the difference of two of them is 0 and not NaN.
    FLOOR = tl.constexpr(-3.0e38)

    @triton.jit
    def _places(block, bounds, groups, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton's language
        # Groups of this program, their first place and end; groups past the last one are empty.
        i = block * BLOCK + tl.arange(0, BLOCK)
        held = i < groups
        start = tl.load(bounds + i, mask=held, other=0)
        end = tl.load(bounds + i + 1, mask=held, other=0)
        return i, held, start, end

    @triton.jit
    def _patch(place, ok, order, HAS_ORDER: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton's language
        # int64, because offsets into a large batch pass 2 ** 31.
        if HAS_ORDER:
            patch = tl.load(order + place, mask=ok, other=0).to(tl.int64)
        else:
            patch = place.to(tl.int64)
        return patch

    @triton.jit
    def _forward(  # type: ignore[no-untyped-def]  # Triton's language
        q, k, v, out, bounds, order, scale, groups, heads, blocks, longest, head_dim,
        q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, o_row, o_head, o_token,
        HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        block = program % blocks
        head = ((program // blocks) % heads).to(tl.int64)
        row = (program // blocks // heads).to(tl.int64)
        i, held, start, end = _places(block, bounds, groups, BLOCK)
        d = tl.arange(0, DIM)
        inside = d[None, :] < head_dim
        ours = held[:, None] & inside
        i = i.to(tl.int64)
        at_q = row * q_row + head * q_head + i[:, None] * q_token + d[None, :]
        query = tl.load(q + at_q, mask=ours, other=0.0).to(tl.float32)
        top = tl.full([BLOCK], FLOOR, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        acc = tl.zeros([BLOCK, DIM], tl.float32)
        for s in range(longest):
            ok = start + s < end
            patch = _patch(start + s, ok, order, HAS_ORDER)
            seen = ok[:, None] & inside
            at_k = row * k_row + head * k_head + patch[:, None] * k_token + d[None, :]
            at_v = row * v_row + head * v_head + patch[:, None] * v_token + d[None, :]
            key = tl.load(k + at_k, mask=seen, other=0.0).to(tl.float32)
            value = tl.load(v + at_v, mask=seen, other=0.0).to(tl.float32)
            score = tl.where(ok, tl.sum(query * key, 1) * scale, FLOOR)
            higher = tl.where(ok, tl.maximum(top, score), top)
            weight = tl.where(ok, tl.exp(score - higher), 0.0)
            shrink = tl.where(ok, tl.exp(top - higher), 1.0)
            total = total * shrink + weight
            acc = acc * shrink[:, None] + weight[:, None] * value
            top = higher
        total = tl.where(held, total, 1.0)
        at_o = row * o_row + head * o_head + i[:, None] * o_token + d[None, :]
        tl.store(out + at_o, (acc / total[:, None]).to(out.dtype.element_ty), mask=ours)

    @triton.jit
    def _backward(  # type: ignore[no-untyped-def]  # Triton's language
        q, k, v, dout, dq, dk, dv, bounds, order, scale, groups, heads, blocks, longest, head_dim,
        q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, o_row, o_head, o_token,
        dq_row, dq_head, dq_token, dk_row, dk_head, dk_token, dv_row, dv_head, dv_token,
        HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        block = program % blocks
        head = ((program // blocks) % heads).to(tl.int64)
        row = (program // blocks // heads).to(tl.int64)
        i, held, start, end = _places(block, bounds, groups, BLOCK)
        d = tl.arange(0, DIM)
        inside = d[None, :] < head_dim
        ours = held[:, None] & inside
        i = i.to(tl.int64)
        at_q = row * q_row + head * q_head + i[:, None] * q_token + d[None, :]
        at_o = row * o_row + head * o_head + i[:, None] * o_token + d[None, :]
        query = tl.load(q + at_q, mask=ours, other=0.0).to(tl.float32)
        grad = tl.load(dout + at_o, mask=ours, other=0.0).to(tl.float32)
        top = tl.full([BLOCK], FLOOR, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        mean = tl.zeros([BLOCK], tl.float32)  # weighted mean of grad . value
        for s in range(longest):
            ok = start + s < end
            patch = _patch(start + s, ok, order, HAS_ORDER)
            seen = ok[:, None] & inside
            at_k = row * k_row + head * k_head + patch[:, None] * k_token + d[None, :]
            at_v = row * v_row + head * v_head + patch[:, None] * v_token + d[None, :]
            key = tl.load(k + at_k, mask=seen, other=0.0).to(tl.float32)
            value = tl.load(v + at_v, mask=seen, other=0.0).to(tl.float32)
            score = tl.where(ok, tl.sum(query * key, 1) * scale, FLOOR)
            higher = tl.where(ok, tl.maximum(top, score), top)
            weight = tl.where(ok, tl.exp(score - higher), 0.0)
            shrink = tl.where(ok, tl.exp(top - higher), 1.0)
            total = total * shrink + weight
            mean = mean * shrink + weight * tl.sum(grad * value, 1)
            top = higher
        total = tl.where(held, total, 1.0)
        top = tl.where(held, top, 0.0)
        mean = mean / total
        acc = tl.zeros([BLOCK, DIM], tl.float32)
        for s in range(longest):
            ok = start + s < end
            patch = _patch(start + s, ok, order, HAS_ORDER)
            seen = ok[:, None] & inside
            at_k = row * k_row + head * k_head + patch[:, None] * k_token + d[None, :]
            at_v = row * v_row + head * v_head + patch[:, None] * v_token + d[None, :]
            key = tl.load(k + at_k, mask=seen, other=0.0).to(tl.float32)
            value = tl.load(v + at_v, mask=seen, other=0.0).to(tl.float32)
            weight = tl.where(ok, tl.exp(tl.sum(query * key, 1) * scale - top), 0.0) / total
            slope = weight * (tl.sum(grad * value, 1) - mean) * scale
            acc += slope[:, None] * key
            at_dk = row * dk_row + head * dk_head + patch[:, None] * dk_token + d[None, :]
            at_dv = row * dv_row + head * dv_head + patch[:, None] * dv_token + d[None, :]
            tl.store(dk + at_dk, (slope[:, None] * query).to(dk.dtype.element_ty), mask=seen)
            tl.store(dv + at_dv, (weight[:, None] * grad).to(dv.dtype.element_ty), mask=seen)
        at_dq = row * dq_row + head * dq_head + i[:, None] * dq_token + d[None, :]
        tl.store(dq + at_dq, acc.to(dq.dtype.element_ty), mask=ours)


def _strides(*tensors: torch.Tensor) -> list[int]:
    strides: list[int] = []
    for x in tensors:
        strides += x.stride()[:3]
    return strides


def _dense_last(x: torch.Tensor) -> torch.Tensor:
    if x.stride(-1) == 1:
        return x
    return x.contiguous()


def _sizes(q: torch.Tensor) -> tuple[int, int, int]:
    """(groups per program, padded head_dim, programs per row and head): about 2048 numbers per
    operand and program.
    """
    dim = max(16, triton.next_power_of_2(q.shape[3]))
    block = min(max(4, 2048 // dim), triton.next_power_of_2(q.shape[2]))
    return block, dim, triton.cdiv(q.shape[2], block)


class _FusedPartial(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bounds: torch.Tensor,
        order: torch.Tensor | None,
        longest: int,
        scale: float,
    ) -> torch.Tensor:
        q, k, v = _dense_last(q), _dense_last(k), _dense_last(v)
        out = torch.empty_like(q)
        block, dim, blocks = _sizes(q)
        grid = (blocks * q.shape[0] * q.shape[1],)
        with torch.cuda.device_of(q):  # Triton launches on the current device
            _forward[grid](
                q, k, v, out, bounds, order, scale, q.shape[2], q.shape[1], blocks, longest, q.shape[3],
                *_strides(q, k, v, out), HAS_ORDER=order is not None, BLOCK=block, DIM=dim,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, bounds, order)
        ctx.longest, ctx.scale = longest, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, bounds, order = ctx.saved_tensors
        dout = _dense_last(dout)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        block, dim, blocks = _sizes(q)
        grid = (blocks * q.shape[0] * q.shape[1],)
        with torch.cuda.device_of(q):  # Triton launches on the current device
            _backward[grid](
                q, k, v, dout, dq, dk, dv, bounds, order, ctx.scale,
                q.shape[2], q.shape[1], blocks, ctx.longest, q.shape[3],
                *_strides(q, k, v, dout, dq, dk, dv), HAS_ORDER=order is not None, BLOCK=block, DIM=dim,
            )  # fmt: skip
        return dq, dk, dv, None, None, None, None


def fused_partial(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    order: torch.Tensor | None,
    longest: int,
    scale: float | None = None,
) -> torch.Tensor:
    """Compute the attention of each group's query to the group's patches, which has the shape of q
    and is differentiable once.

    Args:
        bounds: int32 `(groups + 1,)`; every patch lies in exactly one group, no group is empty.
        order: int64 `(patches,)`, or None when the groups follow each other.
        longest: patches of the longest group.
        scale: of the scores; None: head_dim ** -0.5.

    Raises:
        ValueError: Triton is not installed, or another dtype than float32, float16 and bfloat16.
    """
    if triton is None:
        raise ValueError("the fused Triton kernel needs the package triton (pip install triton)")
    if q.dtype not in DTYPES:
        raise ValueError(
            f"the fused Triton kernel takes float32, float16 and bfloat16, found {q.dtype}"
        )
    if scale is None:
        scale = q.shape[-1] ** -0.5
    return _FusedPartial.apply(q, k, v, bounds, order, longest, scale)
