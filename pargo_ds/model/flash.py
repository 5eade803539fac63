"""One interface to FlashAttention over packed sequences: torch's varlen_attn, flash-attn 2, 3 and
4.

All of them align bottom-right: row i of sq rows sees the keys
`[i + sk - sq - left, i + sk - sq + right]` of its sk keys, inclusive. They differ in keywords, in
how an unbounded window is written (-1 or None), in what they return and in grouped-query attention;
the differences end in this file. On a CPU, where none of them runs, varlen_reference.py computes
the same rule.

Axis legend: q `(tokens, heads, head_dim)`; k, v `(keys, key_heads, head_dim)`; cu_seqlens int32
`(sequences + 1,)`.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .varlen_reference import VarlenCall, varlen_reference

PROVIDERS = ("auto", "torch", "flash_attn_2", "flash_attn_3", "flash_attn_4")
# The source that replaces FlashAttention on devices where none runs; it is no word of a run file.
REFERENCE = "varlen_reference"
Window = tuple[int | None, int | None]

# On CUDA `auto` chooses the first row that is installed and has the device's major compute
# capability.
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
    """Return the varlen functions that this machine can import, by provider; they are looked for
    once per process.
    """
    found = {name: load() for name, load in _LOADERS.items()}
    here = {name: function for name, function in found.items() if function is not None}
    _TRACED.update(here)
    return here


def resolve_provider(provider: str, device: torch.device) -> tuple[str, str]:
    """Return (source, reason): what computes the flash words on `device`.

    On CUDA the source is a FlashAttention: the one that is asked for, or for `auto` the first of
    AUTO_RULES. Elsewhere none of them runs, and `auto` is REFERENCE.

    Raises:
        ValueError: an unknown provider, one that is not installed, one that is asked for on a
            device without CUDA, or `auto` on a GPU for which nothing is installed. The message
            names what is installed and how to get more.
    """
    if provider not in PROVIDERS:
        known = ", ".join(PROVIDERS)
        raise ValueError(f"unknown attention provider '{provider}': choose one of {known}")
    if provider == "auto":
        return _auto_source(device)
    check_installed(provider)
    if device.type != "cuda":
        raise ValueError(
            f"attention.provider {provider} runs on CUDA only, the tensors are on {device.type}; "
            "set attention.provider: auto"
        )
    return provider, "asked for"


def _auto_source(device: torch.device) -> tuple[str, str]:
    if device.type != "cuda":
        return REFERENCE, f"plain torch, because no FlashAttention runs on {device.type}"
    major = torch.cuda.get_device_capability(device)[0]
    names = [name for name, _ in AUTO_RULES]
    for name, capabilities in AUTO_RULES:
        if name in installed() and major in capabilities:
            return name, f"first of {', '.join(names)} for compute capability {major}.x"
    ways = "; ".join(f"{name}: {HOW_TO_GET[name]}" for name in names)
    found = f"compute capability {major}.x (installed: {_names_installed()})"
    raise ValueError(f"no FlashAttention for {found}. {ways}")


def _names_installed() -> str:
    return ", ".join(installed()) or "none"


def check_installed(provider: str) -> None:
    """Raise ValueError for a provider that this machine cannot import; the message says how to get
    it.
    """
    if provider in _LOADERS and provider not in installed():
        raise ValueError(
            f"attention.provider {provider} is not installed (installed: {_names_installed()}). "
            f"To get it: {HOW_TO_GET[provider]}; or set attention.provider: auto"
        )


def supports(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashAttention supports such tensors: half precision, head_dim 8, 16, ... 256."""
    return dtype in HALF and head_dim % 8 == 0 and head_dim <= 256


def source_on_gpu(provider: str, device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Return the FlashAttention for such tensors, or None; for callers that have an alternative."""
    if device.type != "cuda" or not supports(dtype, dim):
        return None
    try:
        return resolve_provider(provider, device)[0]
    except ValueError:
        return None


def flash_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    source: str,
    window: Window | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute the attention of each packed sequence to its own keys, `(tokens, heads, head_dim)`.

    Args:
        source: what computes it, as `resolve_provider` gave it; callers resolve once and keep it.
        window: (left, right) keys seen beside a row's own place, None or -1 for unbounded; see the
            rule above.
        causal: no key right of a row's own place.
        scale: of the scores; None means head_dim ** -0.5.

    Raises:
        ValueError: heads that key heads do not divide; a dtype or head size that FlashAttention
            does not take.
    """
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    left, right = window or (None, None)
    if left is None:
        left = -1
    if right is None:
        right = -1
    if causal:
        right = 0
    if scale is None:
        scale = q.shape[-1] ** -0.5
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    call = VarlenCall(q, k, v, *lengths, left, right, scale)
    if source == REFERENCE:
        return varlen_reference(call)
    if not supports(q.dtype, q.shape[-1]):
        raise ValueError(
            f"provider {source} takes float16 or bfloat16 and a head_dim that is a multiple of 8 "
            f"up to 256; found {str(q.dtype).removeprefix('torch.')} and head_dim {q.shape[-1]}. "
            "Set train.precision: bf16, or attention.partial: fused, attention.cascade: dense, "
            "attention.llm: sdpa"
        )
    out = _CALLS[source](call)
    if isinstance(out, tuple):  # (output, log-sum-exp, ...)
        return out[0]
    return out


def _function(provider: str) -> Callable[..., Any]:
    if not torch.compiler.is_compiling():
        return installed()[provider]
    return _TRACED[provider]


_TRACED: dict[str, Callable[..., Any]] = {}
"""What `installed` returned, for graphs of torch.compile, which read a dictionary but do not import."""


@torch.compiler.assume_constant_result  # torch.compile calls it once, while it traces
def _takes(provider: str, keyword: str) -> bool:
    return keyword in inspect.signature(installed()[provider]).parameters


def _call_torch(call: VarlenCall) -> Any:
    function = _function("torch")
    options: dict[str, Any] = {"window_size": (call.left, call.right), "scale": call.scale}
    if call.q.shape[1] != call.k.shape[1]:
        if _takes("torch", "enable_gqa"):  # from 2.12
            options["enable_gqa"] = True
        else:
            call = call.with_repeated_keys()
    return function(*call[:7], **options)


def _flash_attn(name: str, unbounded: int | None) -> Callable[[VarlenCall], Any]:
    """Return the call of one flash-attn, which writes `unbounded` for a side without a limit."""

    def in_its_words(side: int) -> int | None:
        return side if side >= 0 else unbounded

    def compute(call: VarlenCall) -> Any:
        function = _function(name)
        window = (in_its_words(call.left), in_its_words(call.right))
        options: dict[str, Any] = {"softmax_scale": call.scale, "causal": call.right == 0}
        if _takes(name, "deterministic"):
            options["deterministic"] = torch.are_deterministic_algorithms_enabled()
        for key in ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"):
            options[key] = getattr(call, key)
        return function(call.q, call.k, call.v, window_size=window, **options)

    return compute


_CALLS: dict[str, Callable[[VarlenCall], Any]] = {
    "torch": _call_torch,
    "flash_attn_2": _flash_attn("flash_attn_2", -1),
    "flash_attn_3": _flash_attn("flash_attn_3", -1),
    "flash_attn_4": _flash_attn("flash_attn_4", None),
}
