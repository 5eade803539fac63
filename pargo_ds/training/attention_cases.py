"""Attention of the projector as calls to be timed: shapes, tensors as the projector lays them out, what can run where.

Axis legend: as pargo_ds/model/attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from pargo_ds.model.attention import cascade_attention, partial_attention
from pargo_ds.model.flash import PROVIDERS, check_installed, installed, takes
from pargo_ds.model.groups import PatchGroups
from pargo_ds.model.masks import window_width
from pargo_ds.model.partial_backends import check_varlen_limits

RAGGED_SIDES = (24, 21, 27, 18)  # patches along each side of the pictures of a ragged batch, in turns
FLASH = {"partial": ("flash_window", "flash_varlen"), "cascade": ("flash",)}
WITHOUT_FLASH = {"partial": ("dense", "fused"), "cascade": ("dense",)}


@dataclass(frozen=True)
class Case:
    """One shape of one kind of attention.

    Args:
        kind: partial (tokens over their patches) | cascade (tokens among themselves, `layer` of `depth`, shifted).
        patches: per picture; None: pictures of different sizes in one row (RAGGED_SIDES).
    """

    kind: str
    images: int
    heads: int
    partial: int
    patches: int | None
    head_dim: int
    layer: int = 3
    depth: int = 6

    @property
    def shape(self) -> str:
        """Name of the row, such as `partial B=8 h=8 n=288/576 d=64`."""
        width = window_width(self.partial, self.layer, self.depth)
        seen = f"window {width}" if self.kind == "cascade" else str(self.patches or "ragged")
        return f"{self.kind} B={self.images} h={self.heads} n={self.partial}/{seen} d={self.head_dim}"

    @cached_property
    def groups(self) -> PatchGroups:
        if self.patches is not None:
            return PatchGroups.uniform(self.partial, self.patches)
        ends = [0]
        for i in range(self.images):
            ends.append(ends[-1] + RAGGED_SIDES[i % len(RAGGED_SIDES)] ** 2)
        return PatchGroups.packed(self.partial, ends)

    @property
    def table_key(self) -> tuple[int, int]:
        """(head_dim, size) of this shape's row in attention_table.py."""
        return self.head_dim, self.partial if self.kind == "cascade" else self.groups.longest

    def numbers(self) -> tuple[int, int]:
        """How many numbers q and how many k hold."""
        per_token = self.heads * self.head_dim
        queries = self.images * self.partial
        if self.kind == "cascade":
            return queries * per_token, queries * per_token
        rows = 1 if self.groups.ragged else self.images
        return queries * per_token, rows * self.groups.patches_per_row * per_token

    def floor_bytes(self, dtype: torch.dtype) -> tuple[int, int]:
        """Bytes that forward, and forward + backward, must move at least: q, k, v read and the output written; then
        q, k, v and the output's gradient read and three gradients written."""
        query, key = (count * dtype.itemsize for count in self.numbers())
        return 2 * query + 2 * key, 5 * query + 6 * key

    def tensors(self, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        """q, k, v that want gradients, and the output's gradient; strided as the projector's."""
        generator = torch.Generator(device).manual_seed(0)
        ragged = self.kind == "partial" and self.groups.ragged
        keys = self.partial if self.kind == "cascade" else self.groups.patches_per_row

        def draw(rows: int, tokens: int) -> torch.Tensor:
            size = (rows, tokens, self.heads, self.head_dim)
            return torch.randn(size, generator=generator, device=device, dtype=dtype).transpose(1, 2)

        q, dout = (draw(self.images, self.partial) for _ in range(2))
        k, v = (draw(1 if ragged else self.images, keys) for _ in range(2))
        return [*(x.requires_grad_() for x in (q, k, v)), dout]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str, provider: str = "auto"
    ) -> torch.Tensor:
        """The attention itself by one backend."""
        if self.kind == "cascade":
            return cascade_attention(q, k, v, self.layer, self.depth, "shifted", backend, provider)
        return partial_attention(q, k, v, self.groups, backend, provider)

    def calls(
        self, backend: str, provider: str, tensors: list[torch.Tensor]
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        """(forward without a graph, forward + backward) on `tensors`."""
        q, k, v, dout = tensors

        def forward() -> object:
            with torch.no_grad():
                return self.attend(q, k, v, backend, provider)

        def forward_backward() -> object:
            return torch.autograd.grad(self.attend(q, k, v, backend, provider), (q, k, v), dout)

        return forward, forward_backward


def roads(kind: str, device: torch.device, emulated: bool) -> list[tuple[str, str]]:
    """(backend, provider) of every road of one kind, installed or not; the provider is "" where none is asked."""
    plain = [(backend, "") for backend in WITHOUT_FLASH[kind]]
    real = [name for name in PROVIDERS if name not in ("auto", "emulated")] if device.type == "cuda" else []
    sources = [*real, *(["emulated"] if emulated or device.type != "cuda" else [])]
    return plain + [(backend, source) for backend in FLASH[kind] for source in sources]


def why_not(case: Case, backend: str, provider: str, tensors: list[torch.Tensor], emulated: bool) -> str | None:
    """Why this road cannot (or should not) be timed here; None when it can."""
    q = tensors[0]
    if provider == "":
        return None
    if provider == "emulated":
        there = ", ".join(installed()) or "none"
        reason = f"no FlashAttention runs on {q.device.type} (importable: {there}); --emulated times the emulation"
        return None if emulated else reason
    try:
        check_installed(provider)
        if backend == "flash_varlen":
            check_varlen_limits(case.images * case.partial, case.heads, case.head_dim, training=True)
    except ValueError as error:
        return str(error)
    if not takes(q):
        return f"FlashAttention takes no {str(q.dtype).removeprefix('torch.')} of head_dim {case.head_dim}"
    return None
