"""Attention of the projector as calls to be timed: shapes, tensors as the projector lays them out,
what can run where.

Axis legend: as pargo_ds/model/attention.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from pargo_ds.model.attention import cascade_attention, partial_attention
from pargo_ds.model.flash import PROVIDERS, check_installed, installed, supports
from pargo_ds.model.groups import PatchGroups
from pargo_ds.model.masks import window_width
from pargo_ds.model.partial_backends import check_varlen_limits

FLASH = {"partial": ("flash_window", "flash_varlen"), "cascade": ("flash",)}
WITHOUT_FLASH = {"partial": ("dense", "fused"), "cascade": ("dense",)}


@dataclass(frozen=True)
class Case:
    """One shape of one kind of attention.

    Args:
        kind: partial (tokens over their patches) | cascade (tokens among themselves in `layer` of
            `depth`, shifted).
        patches: per image; 0 for the cascade, which looks at none.
    """

    kind: str
    images: int
    heads: int
    partial: int
    patches: int
    head_dim: int
    layer: int = 3
    depth: int = 6

    @property
    def shape(self) -> str:
        """Name of the row, such as `partial B=8 h=8 n=288/576 d=64`."""
        seen = str(self.patches)
        if self.kind == "cascade":
            seen = f"window {window_width(self.partial, self.layer, self.depth)}"
        return (
            f"{self.kind} B={self.images} h={self.heads} n={self.partial}/{seen} d={self.head_dim}"
        )

    @cached_property
    def groups(self) -> PatchGroups:
        """The groups of patches of a partial case."""
        return PatchGroups(self.partial, self.patches)

    def tensors(self, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        """Return q, k, v that want gradients, and the output's gradient; strided as the
        projector's.
        """
        generator = torch.Generator(device).manual_seed(0)
        keys = self.partial if self.kind == "cascade" else self.groups.num_patches

        def draw(tokens: int) -> torch.Tensor:
            size = (self.images, tokens, self.heads, self.head_dim)
            x = torch.randn(size, generator=generator, device=device, dtype=dtype)
            return x.transpose(1, 2)

        q, k, v = draw(self.partial), draw(keys), draw(keys)
        return [*(x.requires_grad_() for x in (q, k, v)), draw(self.partial)]

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        backend: str,
        provider: str = "auto",
    ) -> torch.Tensor:
        """Compute the attention itself by one backend."""
        if self.kind == "cascade":
            return cascade_attention(q, k, v, self.layer, self.depth, "shifted", backend, provider)
        return partial_attention(q, k, v, self.groups, backend, provider)

    def calls(
        self, backend: str, provider: str, tensors: list[torch.Tensor]
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return (forward without a graph, forward + backward) on `tensors`."""
        q, k, v, dout = tensors

        def forward() -> object:
            with torch.no_grad():
                return self.attend(q, k, v, backend, provider)

        def forward_backward() -> object:
            return torch.autograd.grad(self.attend(q, k, v, backend, provider), (q, k, v), dout)

        return forward, forward_backward


def floor_bytes(tensors: list[torch.Tensor]) -> int:
    """Return the bytes that forward + backward must move at least, for the `tensors` of a case.

    Forward reads q, k and v and writes the output. Backward reads them again with the output's
    gradient, which is as large as the output, and writes the gradients of the three.
    """
    q, k, v, dout = (x.numel() * x.element_size() for x in tensors)
    return (q + k + v + dout) + (q + k + v + dout) + (q + k + v)


def combinations(kind: str, device: torch.device) -> list[tuple[str, str]]:
    """Return (backend, provider) of each combination of one kind, installed or not.

    The provider is "" for a backend that needs none. FlashAttention's own run on CUDA only;
    elsewhere its backends stand in the list once, to be skipped with the reason.
    """
    plain = [(backend, "") for backend in WITHOUT_FLASH[kind]]
    providers = PROVIDERS[1:] if device.type == "cuda" else ("auto",)
    return plain + list(itertools.product(FLASH[kind], providers))


def unsupported_reason(
    case: Case, backend: str, provider: str, tensors: list[torch.Tensor]
) -> str | None:
    """Return why a combination cannot (or should not) be timed here; None if it can."""
    q = tensors[0]
    if provider == "":
        return None
    if backend == "flash_window" and not case.groups.even:
        return "groups are uneven: the rule takes fused"
    if q.device.type != "cuda":
        there = ", ".join(installed()) or "none"
        return f"no FlashAttention runs on {q.device.type} (importable: {there})"
    try:
        check_installed(provider)
        if backend == "flash_varlen":
            sequences = case.images * case.partial
            check_varlen_limits(sequences, case.heads, case.head_dim, training=True)
    except ValueError as error:
        return str(error)
    if not supports(q.dtype, case.head_dim):
        dtype = str(q.dtype).removeprefix("torch.")
        return f"FlashAttention takes no {dtype} of head_dim {case.head_dim}"
    return None
