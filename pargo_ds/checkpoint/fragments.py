"""Fragments: runs of a flattened tensor, written by whichever rank holds them and read back cut in any other way.

A checkpoint's weights and optimizer states lie in `fragments/rank_NNNNN.safetensors`, one file per rank that wrote.
A key `exp_avg/4096/projector.output.weight` holds the elements from 4096 on of that parameter's flattened exp_avg.
So the files depend neither on the number of ranks nor on the ZeRO stage. safetensors and not torch's distributed
checkpoint: its metadata is a pickle, and it cannot express the fragments of ZeRO 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.checkpoint.safetensors_file import open_safetensors

FOLDER = "fragments"
WEIGHT = "fp32"
"""Kind of the weights themselves; the other kinds are the optimizer's names (exp_avg, exp_avg_sq)."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Elements `start` ... `start + numel` of one flattened parameter, in all kinds (1-D tensors of equal length)."""

    name: str
    start: int
    kinds: Mapping[str, torch.Tensor]

    @property
    def numel(self) -> int:
        return self.kinds[WEIGHT].numel()


def fragment_file(rank: int) -> str:
    """Name of a rank's file within a checkpoint."""
    return f"{FOLDER}/rank_{rank:05d}.safetensors"


def as_tensors(fragments: list[Fragment]) -> dict[str, torch.Tensor]:
    """The tensors of a rank's file by their keys."""
    return {f"{kind}/{f.start}/{f.name}": tensor for f in fragments for kind, tensor in f.kinds.items()}


@dataclass(frozen=True)
class _Piece:
    start: int
    numel: int
    file: Path
    key: str


@dataclass
class FragmentFiles:
    """All fragments of a checkpoint folder, read by memory map and only where asked for.

    Args:
        folder: the checkpoint.
        shapes: every parameter's whole shape (from the manifest).

    Raises:
        CheckpointError: a file cannot be read, a key is malformed, or fragments of a parameter leave a gap, overlap or
            reach beyond its end.
    """

    folder: Path
    shapes: Mapping[str, list[int]]
    _pieces: dict[tuple[str, str], list[_Piece]] = field(default_factory=dict)
    _open: dict[Path, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = sorted((self.folder / FOLDER).glob("rank_*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.folder}: no files in {FOLDER}/; the checkpoint is not whole")
        for path in files:
            handle = self._handle(path)
            for key in handle.keys():  # noqa: SIM118 (safe_open is no dict)
                kind, start, name = _parse_key(key, path)
                numel = prod(handle.get_slice(key).get_shape())
                self._pieces.setdefault((kind, name), []).append(_Piece(start, numel, path, key))
        for (kind, name), pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            self._check_cover(kind, name, pieces)

    def _check_cover(self, kind: str, name: str, pieces: list[_Piece]) -> None:
        if name not in self.shapes:
            raise CheckpointError(f"{pieces[0].file}: holds {name}, which the manifest does not name")
        end = 0
        for piece in pieces:
            if piece.start != end:
                what = "overlaps what comes before it" if piece.start < end else f"leaves a gap from {end} on"
                raise CheckpointError(f"{piece.file}: {kind} of {name} from element {piece.start} {what}")
            end += piece.numel
        if end != prod(self.shapes[name]):
            raise CheckpointError(
                f"{self.folder}: {kind} of {name} has {end} elements, its shape {self.shapes[name]} needs "
                f"{prod(self.shapes[name])}; a rank's file is missing or was cut"
            )

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        return self._open[path]

    def kinds(self, name: str) -> list[str]:
        """Kinds that are there for one parameter."""
        return [kind for kind, there in self._pieces if there == name]

    def names(self) -> list[str]:
        """Parameters that are there, in alphabetic order."""
        return sorted({name for _, name in self._pieces})

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements `start` ... `stop` (default: all) of a flattened tensor, 1-D.

        Raises CheckpointError when that kind of the parameter is not there.
        """
        if (kind, name) not in self._pieces:
            raise CheckpointError(
                f"{self.folder}: {kind} of {name} is missing (found: {self.kinds(name) or 'nothing'})"
            )
        stop = prod(self.shapes[name]) if stop is None else stop
        parts = []
        for piece in self._pieces[kind, name]:
            first, last = max(start, piece.start), min(stop, piece.start + piece.numel)
            if first < last:
                values = self._handle(piece.file).get_slice(piece.key)
                parts.append(values[first - piece.start : last - piece.start])
        if not parts:
            return torch.zeros(0)
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def whole(self, kind: str, name: str) -> torch.Tensor:
        """The whole tensor in its shape."""
        return self.read(kind, name).view(self.shapes[name])

    def pieces(self, kind: str, name: str, size: int) -> Iterator[torch.Tensor]:
        """The elements of a flattened tensor in order, `size` at a time."""
        numel = prod(self.shapes[name])
        for start in range(0, numel, size):
            yield self.read(kind, name, start, min(start + size, numel))


def _parse_key(key: str, path: Path) -> tuple[str, int, str]:
    kind, _, rest = key.partition("/")
    start, _, name = rest.partition("/")
    if not (kind and start.isdigit() and name):
        raise CheckpointError(f"{path}: unknown key {key!r}; expected kind/first element/parameter")
    return kind, int(start), name
