"""The narrow door to the projector's attention: what is computed is fixed by masks.py, how is decided here.

A backend changes speed and memory, never numbers. `auto` reads attention_table.py; what is chosen, and why, is logged
once.

Axis legend: q, k, v are `(images, heads, tokens, head_dim)`. Ragged pictures (groups.ragged) lie side by side in one
row: k, v `(1, heads, all patches, head_dim)`.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from .attention_table import CASCADE, DEFAULTS, PARTIAL
from .flash import PROVIDERS, Window, flash_varlen, resolve_provider, runs_on_gpu
from .groups import PatchGroups
from .masks import cascade_mask, window_width
from .partial_backends import BACKENDS

PARTIAL_BACKENDS = ("auto", *BACKENDS)
CASCADE_BACKENDS = ("auto", "flash", "dense")
LLM_BACKENDS = ("auto", "varlen", "sdpa", "eager")

log = logging.getLogger("pargo_ds")


@dataclass(frozen=True)
class AttentionChoice:
    """How attention is computed in one run; never saved with the model.

    Args:
        partial: auto | fused | flash_window | flash_varlen | dense: partial tokens and their patches.
        cascade: auto | flash | dense: partial tokens among themselves.
        provider: auto | torch | flash_attn_2 | flash_attn_3 | flash_attn_4 | emulated: FlashAttention's source.
        llm: auto | varlen | sdpa | eager: packed sequences in the LLM.

    Raises:
        ValueError: a word that is not in these lists.
    """

    partial: str = "auto"
    cascade: str = "auto"
    provider: str = "auto"
    llm: str = "auto"

    def __post_init__(self) -> None:
        known = {"partial": PARTIAL_BACKENDS, "cascade": CASCADE_BACKENDS, "provider": PROVIDERS, "llm": LLM_BACKENDS}
        for name, words in known.items():
            if getattr(self, name) not in words:
                raise ValueError(f"attention.{name} is '{getattr(self, name)}': choose one of {', '.join(words)}")


@lru_cache(maxsize=256)
def say_once(message: str) -> None:
    """Log a choice the first time that it is made."""
    log.info(message)


def partial_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    groups: PatchGroups,
    backend: str = "auto",
    provider: str = "auto",
) -> torch.Tensor:
    """PGP of the partial tokens: each looks at its group of patches.

    q is `(images, heads, partial, head_dim)`, k and v `(images, heads, patches, head_dim)` (one row of all pictures
    when ragged); returns the shape of q. flash_window needs even groups; uneven ones are computed by `fused`.

    Raises:
        ValueError: shapes that do not fit `groups`, an unknown backend, a provider that is not there, or more groups
            than flash_varlen takes.
    """
    _check_shapes(q, k, v, groups)
    if q.shape[2] == 0:
        return torch.zeros_like(q)
    name = choose_partial(backend, provider, groups, q.shape[-1], q.device)
    images = q.shape[0]
    if groups.ragged:  # all pictures' groups in one row
        q = q.transpose(0, 1).flatten(1, 2).unsqueeze(0)
    out = BACKENDS[name](q, k, v, groups, provider)
    if groups.ragged:
        out = out[0].unflatten(1, (images, groups.num_partial)).transpose(0, 1)
    return out


def _check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: PatchGroups) -> None:
    rows = 1 if groups.ragged else q.shape[0]
    images = groups.num_images if groups.ragged else q.shape[0]
    expected_q = (images, q.shape[1], groups.num_partial, q.shape[3])
    expected_k = (rows, q.shape[1], groups.patches_per_row, q.shape[3])
    if q.shape != expected_q or k.shape != expected_k or v.shape != expected_k:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit the groups: expected {expected_q} "
            f"and twice {expected_k} (pictures or rows, heads, tokens, head_dim)"
        )


def choose_partial(backend: str, provider: str, groups: PatchGroups, head_dim: int, device: torch.device) -> str:
    """Backend that computes these groups; logs the choice and its reason once.

    Raises:
        ValueError: unknown backend, or a provider that is not there.
    """
    if backend not in PARTIAL_BACKENDS:
        raise ValueError(f"unknown attention.partial '{backend}': choose one of {', '.join(PARTIAL_BACKENDS)}")
    name, reason = backend, "asked for"
    if backend == "auto":
        key = (device_kind(device), head_dim, groups.longest)
        name, reason = _look_up(PARTIAL, key, _default(device)[0], "patches per group")
    if name == "flash_window" and not groups.even:
        name, reason = "fused", "flash_window needs groups of one length, these are uneven"
    if name.startswith("flash"):
        source, why = resolve_provider(provider, device)
        reason += f"; provider {source}: {why}"
    say_once(f"attention: partial tokens by {name} on {device.type} ({reason})")
    return name


def device_kind(device: torch.device) -> str:
    """Name of a row in attention_table.py: the GPU's name, else the device type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _default(device: torch.device) -> tuple[str, str]:
    return DEFAULTS.get(device.type, DEFAULTS["cpu"])


def _look_up(
    table: dict[tuple[str, int, int], str], key: tuple[str, int, int], default: str, what: str
) -> tuple[str, str]:
    kind, head_dim, size = key
    described = f"{kind}, head_dim {head_dim}, {size} {what}"
    if key in table:
        return table[key], f"measured fastest: {described}"
    return default, f"default, not measured: {described}"


def global_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: PatchGroups | None = None, provider: str = "auto"
) -> torch.Tensor:
    """Plain attention without a mask: global tokens over all patches of their picture, or (`release`) among themselves.

    q is `(images, heads, tokens, head_dim)`; with ragged `groups` k and v are one row of all pictures' patches.
    """
    if groups is None or not groups.ragged:
        return F.scaled_dot_product_attention(q, k, v)
    images, _, tokens, _ = q.shape
    ends = groups.cu_patches
    if runs_on_gpu(q, provider):
        cu_q = torch.arange(images + 1, device=q.device, dtype=torch.int32) * tokens
        cu_k = torch.tensor(ends, device=q.device, dtype=torch.int32)
        longest = max(stop - start for start, stop in zip(ends, ends[1:], strict=False))
        out = flash_varlen(
            q.transpose(1, 2).flatten(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1),
            cu_q, cu_k, tokens, longest, provider=provider,
        )  # fmt: skip
        return out.unflatten(0, (images, tokens)).transpose(1, 2)
    pictures = zip(ends, ends[1:], strict=False)
    return torch.cat(
        [
            F.scaled_dot_product_attention(q[i : i + 1], k[:, :, start:stop], v[:, :, start:stop])
            for i, (start, stop) in enumerate(pictures)
        ]
    )


def cascade_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: int,
    depth: int,
    cascade: str = "shifted",
    backend: str = "auto",
    provider: str = "auto",
) -> torch.Tensor:
    """CPP: self-attention among the partial tokens under the window of `layer` (1-based) of `depth`.

    q, k, v and the result are `(images, heads, partial, head_dim)`.

    Raises:
        ValueError: unknown cascade or backend, a layer outside 1..depth, or a provider that is not there.
    """
    name = choose_cascade(backend, provider, q.shape[2], q.shape[3], q.device)
    if name == "dense":
        mask = _cascade_mask(q.shape[2], layer, depth, cascade, q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    width = window_width(q.shape[2], layer, depth)
    if cascade == "shifted":
        return _shifted_window(q, k, v, width, provider)
    if cascade == "none":
        return _OwnValue.apply(q, k, v)
    windows: dict[str, Window | None] = {
        "centered": (width // 2, width - width // 2 - 1), "each_side": (width, width), "release": None
    }  # fmt: skip
    if cascade not in windows:
        cascade_mask(q.shape[2], layer, depth, cascade)  # names the known ones
    return _windowed(q, k, v, windows[cascade], provider)


def choose_cascade(backend: str, provider: str, num_partial: int, head_dim: int, device: torch.device) -> str:
    """Backend of the cascade; logs the choice and its reason once.

    Raises:
        ValueError: unknown backend, or a provider that is not there.
    """
    if backend not in CASCADE_BACKENDS:
        raise ValueError(f"unknown attention.cascade '{backend}': choose one of {', '.join(CASCADE_BACKENDS)}")
    name, reason = backend, "asked for"
    if backend == "auto":
        key = (device_kind(device), head_dim, num_partial)
        name, reason = _look_up(CASCADE, key, _default(device)[1], "partial tokens")
    if name == "flash":
        source, why = resolve_provider(provider, device)
        reason += f"; provider {source}: {why}"
    say_once(f"attention: cascade by {name} on {device.type} ({reason})")
    return name


@lru_cache(maxsize=256)
def _cascade_mask(num_partial: int, layer: int, depth: int, cascade: str, device: torch.device) -> torch.Tensor | None:
    # An inference tensor could not be saved for a later backward pass, so leave inference mode while building.
    with torch.inference_mode(False):
        mask = cascade_mask(num_partial, layer, depth, cascade)
        # Without a mask SDPA may pick a faster kernel.
        return None if bool(mask.all()) else mask.to(device)


def _shifted_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, width: int, provider: str) -> torch.Tensor:
    """Always `width` keys, moved inwards at the edges, as three calls without a mask: the first width // 2 rows see the
    first keys in full, the last rows the last keys in full, and those between them a causal window of all keys, which
    bottom-right alignment puts into place."""
    count = q.shape[2]
    if width == 1:
        return _OwnValue.apply(q, k, v)
    if width == count:
        return _windowed(q, k, v, None, provider)
    first, middle = width // 2, count - width + 1
    parts = [_windowed(q[:, :, :first], k[:, :, :width], v[:, :, :width], None, provider)]
    parts.append(_windowed(q[:, :, first : first + middle], k, v, (width - 1, 0), provider))
    if first + middle < count:
        last = slice(count - width, None)
        parts.append(_windowed(q[:, :, first + middle :], k[:, :, last], v[:, :, last], None, provider))
    return torch.cat(parts, dim=2)


def _windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: Window | None, provider: str) -> torch.Tensor:
    """One varlen call, one sequence per picture."""
    images, _, rows, _ = q.shape
    keys = k.shape[2]
    count = torch.arange(images + 1, device=q.device, dtype=torch.int32)
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends = count * rows
    out = flash_varlen(
        *flat, ends, ends if keys == rows else count * keys, rows, keys, window=window, provider=provider
    )
    return out.unflatten(0, (images, rows)).transpose(1, 2)


class _OwnValue(torch.autograd.Function):
    """A window of one token: the softmax of one score is 1. q and k get zeros, as from any other backend, so that every
    weight has a gradient in every layer."""

    @staticmethod
    def forward(ctx, q, k, v):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q, k)
        return v.clone()

    @staticmethod
    def backward(ctx, dout):  # type: ignore[no-untyped-def]
        q, k = ctx.saved_tensors
        return torch.zeros_like(q), torch.zeros_like(k), dout
