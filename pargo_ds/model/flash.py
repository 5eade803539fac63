"""One door to FlashAttention over packed sequences: torch's varlen_attn, flash-attn 2, 3, 4, an emulation for tests.

All of them align bottom-right: row i of sq rows sees keys `[i + sk - sq - left, i + sk - sq + right]`, inclusive. They
differ in keywords, in how an unbounded window is written (-1 or None), in what they return and in grouped-query
attention; the differences end in this file.

Axis legend: q `(tokens, heads, head_dim)`; k, v `(keys, key_heads, head_dim)`; cu_seqlens int32 `(sequences + 1,)`.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

PROVIDERS = ("auto", "torch", "flash_attn_2", "flash_attn_3", "flash_attn_4", "emulated")
Window = tuple[int | None, int | None]

# What `auto` takes on CUDA: the first row that is installed and whose major compute capabilities hold the device's.
AUTO_RULES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("flash_attn_3", (9,)),  # written for Hopper
    ("flash_attn_2", (8, 9, 10, 12)),
    ("torch", (8, 9, 10, 12)),
)
HOW_TO_GET = {
    "torch": "torch >= 2.11 has it (torch.nn.attention.varlen.varlen_attn with window_size)",
    "flash_attn_2": "pip install flash-attn --no-build-isolation (2.8.3; needs nvcc)",
    "flash_attn_3": "build the folder hopper/ of github.com/Dao-AILab/flash-attention (Hopper GPUs)",
    "flash_attn_4": "pip install flash-attn-4 (Hopper and Blackwell GPUs)",
}
HALF = (torch.float16, torch.bfloat16)


def _torch_varlen() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def _flash_attn_2() -> Callable[..., Any] | None:
    try:
        from flash_attn import __version__, flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func if __version__.startswith("2.") else None


def _flash_attn_3() -> Callable[..., Any] | None:
    try:
        from flash_attn_interface import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def _flash_attn_4() -> Callable[..., Any] | None:
    try:
        from flash_attn.cute import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


_LOADERS = {
    "torch": _torch_varlen,
    "flash_attn_2": _flash_attn_2,
    "flash_attn_3": _flash_attn_3,
    "flash_attn_4": _flash_attn_4,
}


@lru_cache(maxsize=1)
def installed() -> dict[str, Callable[..., Any]]:
    """Varlen functions that this machine can import, by provider; asked once per process."""
    found = {name: load() for name, load in _LOADERS.items()}
    return {name: function for name, function in found.items() if function is not None}


def resolve_provider(provider: str, device: torch.device) -> tuple[str, str]:
    """(provider, reason): what `provider` means on `device`. `auto` follows AUTO_RULES on CUDA and is the emulation
    elsewhere, because no FlashAttention runs there.

    Raises:
        ValueError: an unknown provider, one that is not installed, one that needs CUDA on another device, or `auto` on
            a GPU for which nothing is installed. The message names what is installed and how to get more.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"unknown attention provider '{provider}': choose one of {', '.join(PROVIDERS)}")
    on_gpu = device.type == "cuda"
    if provider == "emulated":
        return provider, "asked for"
    if provider == "auto" and not on_gpu:
        return "emulated", f"no FlashAttention runs on {device.type}"
    if provider == "auto":
        major = torch.cuda.get_device_capability(device)[0]
        for name, capabilities in AUTO_RULES:
            if name in installed() and major in capabilities:
                return name, f"first of {', '.join(rule[0] for rule in AUTO_RULES)} for compute capability {major}.x"
        ways = "; ".join(f"{name}: {HOW_TO_GET[name]}" for name, _ in AUTO_RULES)
        present = ", ".join(installed()) or "none"
        raise ValueError(f"no FlashAttention for compute capability {major}.x (installed: {present}). {ways}")
    check_installed(provider)
    if not on_gpu:
        raise ValueError(
            f"attention.provider {provider} runs on CUDA only, the tensors are on {device.type}; "
            "set attention.provider: auto or emulated"
        )
    return provider, "asked for"


def check_installed(provider: str) -> None:
    """ValueError for a provider that this machine cannot import, naming what is installed and how to get it."""
    if provider in _LOADERS and provider not in installed():
        present = ", ".join(installed()) or "none"
        raise ValueError(
            f"attention.provider {provider} is not installed (installed: {present}). To get it: "
            f"{HOW_TO_GET[provider]}; or set attention.provider: auto"
        )


def takes(q: Tensor) -> bool:
    """Whether FlashAttention on a GPU takes tensors like q: half precision, head_dim a multiple of 8 up to 256."""
    return q.dtype in HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def runs_on_gpu(q: Tensor, provider: str) -> bool:
    """Whether a real FlashAttention can compute with q here; for those who have another exact road."""
    if not q.is_cuda or not takes(q):
        return False
    try:
        return resolve_provider(provider, q.device)[0] != "emulated"
    except ValueError:
        return False


def flash_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    window: Window | None = None,
    causal: bool = False,
    scale: float | None = None,
    provider: str = "auto",
) -> Tensor:
    """Attention of each packed sequence to its own keys -> `(tokens, heads, head_dim)`.

    Args:
        window: (left, right) keys seen beside a row's own place, None or -1 for unbounded; see the rule above.
        causal: no key right of a row's own place.
        scale: of the scores; None: head_dim ** -0.5.
        provider: one of PROVIDERS.

    Raises:
        ValueError: as `resolve_provider`; heads that key heads do not divide; a dtype or head size that
            FlashAttention does not take.
    """
    name, _ = resolve_provider(provider, q.device)
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    left, right = (-1 if side is None else side for side in (window or (-1, -1)))
    if causal:
        right = 0
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if name == "emulated":
        return _emulated(q, k, v, cu_seqlens_q, cu_seqlens_k, left, right, scale)
    if not takes(q):
        raise ValueError(
            f"provider {name} takes float16 or bfloat16 and a head_dim that is a multiple of 8 up to 256; found "
            f"{str(q.dtype).removeprefix('torch.')} and head_dim {q.shape[-1]}. Set train.precision: bf16, or "
            "attention.partial: fused, attention.cascade: dense, attention.llm: sdpa"
        )
    call = _CALLS[name]
    out = call(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right, scale)
    return out[0] if isinstance(out, tuple) else out  # some return (output, log-sum-exp, ...)


def _call_torch(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, left: int, right: int,
    scale: float,
) -> Any:  # fmt: skip
    function = installed()["torch"]
    options: dict[str, Any] = {"window_size": (left, right), "scale": scale}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in inspect.signature(function).parameters:  # from 2.12
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return function(q, k, v, cu_q, cu_k, max_q, max_k, **options)


def _flash_attn(name: str, unbounded: int | None) -> Callable[..., Any]:
    def call(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, left: int, right: int,
        scale: float,
    ) -> Any:  # fmt: skip
        function = installed()[name]
        window = tuple(unbounded if side < 0 else side for side in (left, right))
        options: dict[str, Any] = {"window_size": window, "softmax_scale": scale, "causal": right == 0}
        if "deterministic" in inspect.signature(function).parameters:
            options["deterministic"] = torch.are_deterministic_algorithms_enabled()
        return function(
            q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q, max_seqlen_k=max_k, **options
        )  # fmt: skip

    return call


_CALLS: dict[str, Callable[..., Any]] = {
    "torch": _call_torch,
    "flash_attn_2": _flash_attn("flash_attn_2", -1),
    "flash_attn_3": _flash_attn("flash_attn_3", -1),
    "flash_attn_4": _flash_attn("flash_attn_4", None),
}


def _emulated(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, left: int, right: int, scale: float
) -> Tensor:  # fmt: skip
    """The rule above in plain torch, differentiable in every dtype; sequences of equal sizes go together.

    Rows that see no key are zero, as in the real kernels.
    """
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    by_size: dict[tuple[int, int], list[int]] = {}
    for i in range(len(starts_q) - 1):
        size = (starts_q[i + 1] - starts_q[i], starts_k[i + 1] - starts_k[i])
        by_size.setdefault(size, []).append(i)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    outputs, places = [], []
    for (sq, sk), members in by_size.items():
        rows = (cu_q[members].long()[:, None] + torch.arange(sq, device=q.device)).flatten()
        columns = (cu_k[members].long()[:, None] + torch.arange(sk, device=q.device)).flatten()
        one_q = q[rows].unflatten(0, (len(members), sq)).transpose(1, 2)  # (sequences, heads, sq, head_dim)
        one_k, one_v = (x[columns].unflatten(0, (len(members), sk)).transpose(1, 2) for x in (k, v))
        scores = one_q @ one_k.transpose(-1, -2) * scale
        shift = torch.arange(sk, device=q.device) - torch.arange(sq, device=q.device)[:, None] - (sk - sq)
        hidden = torch.zeros_like(shift, dtype=torch.bool)
        if left >= 0:
            hidden |= shift < -left
        if right >= 0:
            hidden |= shift > right
        weights = scores.masked_fill(hidden, float("-inf"))
        weights = weights.softmax(-1).masked_fill(hidden, 0.0)  # a row of -inf alone would be NaN
        outputs.append((weights @ one_v).transpose(1, 2).flatten(0, 1))
        places.append(rows)
    back = torch.cat(places).argsort()
    return torch.cat(outputs)[back]
