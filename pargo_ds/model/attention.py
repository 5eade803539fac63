"""The attention of the projector. masks.py defines what is computed; this file chooses the backend
that computes it.

Backends differ in speed and memory, not in results. The choice and its reason are logged once.

Axis legend: q, k, v are `(images, heads, tokens, head_dim)`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .flash import PROVIDERS, Window, flash_varlen, resolve_provider
from .groups import PatchGroups
from .masks import cascade_mask, window_width
from .partial_backends import BACKENDS

PARTIAL_BACKENDS = ("auto", *BACKENDS)
CASCADE_BACKENDS = ("auto", "flash", "dense")
LLM_BACKENDS = ("auto", "varlen", "sdpa", "eager")

log = logging.getLogger("pargo_ds")


@dataclass(frozen=True)
class AttentionChoice:
    """The choice of attention backends for one run; it is not saved with the model.

    Args:
        partial: auto | fused | flash_window | flash_varlen | dense: partial tokens over patches.
        cascade: auto | flash | dense: partial tokens among themselves.
        provider: auto | torch | flash_attn_2 | flash_attn_3 | flash_attn_4: the FlashAttention.
        llm: auto | varlen | sdpa | eager: packed sequences in the LLM.

    Raises:
        ValueError: a word that is not in these lists.
    """

    partial: str = "auto"
    cascade: str = "auto"
    provider: str = "auto"
    llm: str = "auto"

    def __post_init__(self) -> None:
        _check_word("partial", self.partial, PARTIAL_BACKENDS)
        _check_word("cascade", self.cascade, CASCADE_BACKENDS)
        _check_word("provider", self.provider, PROVIDERS)
        _check_word("llm", self.llm, LLM_BACKENDS)


def _check_word(key: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        raise ValueError(f"attention.{key} is '{word}': choose one of {', '.join(known)}")


@lru_cache(maxsize=256)
def log_once(message: str) -> None:
    """Log a message, but only once in the life of the process."""
    log.info(message)


class Chosen(NamedTuple):
    """The choice for one kind of attention: the backend, the source of FlashAttention, and the
    message to log. `source` is "" for a backend that does not use FlashAttention.
    """

    backend: str
    source: str
    message: str


# These functions are called in every layer of every step, so their results are cached.
@lru_cache(maxsize=256)
def choose_partial(backend: str, provider: str, even: bool, device: torch.device) -> Chosen:
    """Choose the backend for partial tokens over patches. `even`: all groups have the same length.

    Raises:
        ValueError: the backend is unknown, or the provider is not available.
    """
    _check_word("partial", backend, PARTIAL_BACKENDS)
    name, reason = backend, "asked for"
    if backend == "auto":
        name, reason = "fused", "auto: it reads each patch once, without a mask"
    if backend == "flash_window" and not even:
        name, reason = "fused", "flash_window needs groups of one length, these are uneven"
    return _chosen("partial tokens", name, reason, provider, device)


@lru_cache(maxsize=256)
def choose_cascade(backend: str, provider: str, device: torch.device) -> Chosen:
    """Choose the backend for the cascade.

    Raises:
        ValueError: the backend is unknown, or the provider is not available.
    """
    _check_word("cascade", backend, CASCADE_BACKENDS)
    name, reason = backend, "asked for"
    if backend == "auto":
        name, reason = "dense", "auto: one call, which every device and dtype can compute"
    return _chosen("cascade", name, reason, provider, device)


def _chosen(subject: str, backend: str, reason: str, provider: str, device: torch.device) -> Chosen:
    source = ""
    if backend.startswith("flash"):
        source, why = resolve_provider(provider, device)
        reason += f"; provider {source}: {why}"
    message = f"attention: {subject} by {backend} on {device.type} ({reason})"
    return Chosen(backend, source, message)


def partial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: PatchGroups,
    backend: str = "auto",
    provider: str = "auto",
) -> Tensor:
    """Compute PGP of the partial tokens: each of them attends to its group of patches.

    q is `(images, heads, partial, head_dim)`, k and v `(images, heads, patches, head_dim)`; the
    result has the shape of q. flash_window needs even groups; `fused` computes uneven ones.

    Raises:
        ValueError: shapes that do not fit `groups`, an unknown backend, a provider that is not
            there, or more groups than flash_varlen takes.
    """
    _check_shapes(q, k, v, groups)
    if groups.num_partial == 0:
        return torch.zeros_like(q)
    chosen = choose_partial(backend, provider, groups.even, q.device)
    log_once(chosen.message)
    return BACKENDS[chosen.backend](q, k, v, groups, chosen.source)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, groups: PatchGroups) -> None:
    images, heads, _, head_dim = q.shape
    expected_q = (images, heads, groups.num_partial, head_dim)
    expected_k = (images, heads, groups.num_patches, head_dim)
    if q.shape != expected_q or k.shape != expected_k or v.shape != expected_k:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit the groups: "
            f"expected {expected_q} and twice {expected_k} (images, heads, tokens, head_dim)"
        )


def cascade_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: int,
    depth: int,
    cascade: str = "shifted",
    backend: str = "auto",
    provider: str = "auto",
) -> Tensor:
    """Compute CPP: self-attention among the partial tokens under the window of one layer.

    `layer` counts from 1 to `depth`. q, k, v and the result are
    `(images, heads, partial, head_dim)`.

    Raises:
        ValueError: an unknown cascade or backend, a layer outside 1..depth, or a provider that is
            not there.
    """
    chosen = choose_cascade(backend, provider, q.device)
    log_once(chosen.message)
    if chosen.backend == "dense":
        mask = _cascade_mask(q.shape[2], layer, depth, cascade, q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    width = window_width(q.shape[2], layer, depth)
    if cascade == "shifted":
        return _shifted_window(q, k, v, width, chosen.source)
    if cascade == "none":
        return _SelfAttentionOfOne.apply(q, k, v)
    windows: dict[str, Window | None] = {
        "centered": (width // 2, width - width // 2 - 1),
        "each_side": (width, width),
        "release": None,
    }
    if cascade not in windows:
        cascade_mask(q.shape[2], layer, depth, cascade)  # its error names the known ones
    return _windowed(q, k, v, windows[cascade], chosen.source)


@lru_cache(maxsize=256)
def _cascade_mask(
    num_partial: int,
    layer: int,
    depth: int,
    cascade: str,
    device: torch.device,
) -> Tensor | None:
    # An inference tensor could not be saved for a later backward pass, so leave inference mode.
    with torch.inference_mode(False):
        mask = cascade_mask(num_partial, layer, depth, cascade)
        if bool(mask.all()):
            return None  # without a mask SDPA may pick a faster kernel
        return mask.to(device)


def _shifted_window(q: Tensor, k: Tensor, v: Tensor, width: int, source: str) -> Tensor:
    """Attention to exactly `width` keys, with a window that moves inwards at the edges, as three
    calls without a mask.

    The first width // 2 rows see the first keys in full, the last rows see the last keys in full,
    and those between them see a causal window of all keys, which bottom-right alignment puts into
    its place.
    """
    count = q.shape[2]
    if width == 1:
        return _SelfAttentionOfOne.apply(q, k, v)
    if width == count:
        return _windowed(q, k, v, None, source)
    top, bottom = width // 2, width // 2 + count - width + 1
    parts = [
        _windowed(q[:, :, :top], k[:, :, :width], v[:, :, :width], None, source),
        _windowed(q[:, :, top:bottom], k, v, (width - 1, 0), source),
    ]
    if bottom < count:
        last = slice(count - width, None)
        parts.append(_windowed(q[:, :, bottom:], k[:, :, last], v[:, :, last], None, source))
    return torch.cat(parts, dim=2)


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: Window | None, source: str) -> Tensor:
    """One varlen call with one sequence per image."""
    images, _, rows, _ = q.shape
    keys = k.shape[2]
    count = torch.arange(images + 1, device=q.device, dtype=torch.int32)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends_q, ends_k = count * rows, count * keys
    out = flash_varlen(q, k, v, ends_q, ends_k, rows, keys, window=window, source=source)
    return out.unflatten(0, (images, rows)).transpose(1, 2)


class _SelfAttentionOfOne(torch.autograd.Function):
    """Attention of each token to itself alone: the softmax of a single score is 1.

    The gradients of q and k are zeros, as in all other backends, so that every weight has a
    gradient.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return v.clone()

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = ctx.saved_tensors
        return torch.zeros_like(q), torch.zeros_like(k), dout
