"""Fragments: runs of flattened tensors. Each rank writes the fragments that it holds, and any other
division into runs can be read back.

The weights and optimizer states of a checkpoint are in `fragments/rank_NNNNN.safetensors`, one file
for each rank that wrote. The tensor with the key `exp_avg/4096/projector.output.weight` holds the
elements from 4096 on of the flattened exp_avg of that parameter. So a checkpoint can be read with
any number of ranks and any ZeRO stage. torch's distributed checkpoint is not used, because its
metadata is a pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from pargo_ds.checkpoint.safetensors_file import open_safetensors
from pargo_ds.errors import CheckpointError

FOLDER = "fragments"
WEIGHT = "fp32"
"""The kind of the weights themselves. The other kinds are the names of the optimizer's states, such
as exp_avg.
"""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A run of `numel` elements of one flattened parameter, from element `start` on. `kinds` holds
    a 1-D tensor of this length for the weight and for each state of the optimizer.
    """

    name: str
    start: int
    kinds: Mapping[str, torch.Tensor]

    @property
    def numel(self) -> int:
        return self.kinds[WEIGHT].numel()


def fragment_file(rank: int) -> str:
    """Return the name of a rank's file in a checkpoint."""
    return f"{FOLDER}/rank_{rank:05d}.safetensors"


def as_tensors(fragments: list[Fragment]) -> dict[str, torch.Tensor]:
    """Return the tensors of a rank's file by their keys."""
    tensors = {}
    for fragment in fragments:
        for kind, tensor in fragment.kinds.items():
            tensors[f"{kind}/{fragment.start}/{fragment.name}"] = tensor
    return tensors


@dataclass(frozen=True)
class _Piece:
    start: int
    numel: int
    file: Path
    key: str


@dataclass
class FragmentFiles:
    """All fragments of a checkpoint folder. The files are mapped into memory, and only requested
    parts are read.

    Args:
        folder: the checkpoint.
        shapes: the whole shape of each parameter, from the manifest.

    Raises:
        CheckpointError: a file cannot be read, a key is malformed, or fragments of a parameter
            leave a gap, overlap or reach beyond its end.
    """

    folder: Path
    shapes: Mapping[str, list[int]]
    _pieces: dict[tuple[str, str], list[_Piece]] = field(default_factory=dict)
    _open: dict[Path, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = sorted((self.folder / FOLDER).glob("rank_*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{self.folder}: no files in {FOLDER}/; the checkpoint is not whole"
            )
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
            raise CheckpointError(
                f"{pieces[0].file}: holds {name}, which the manifest does not name"
            )
        end = 0
        for piece in pieces:
            if piece.start != end:
                what = f"leaves a gap from {end} on"
                if piece.start < end:
                    what = "overlaps what comes before it"
                raise CheckpointError(
                    f"{piece.file}: {kind} of {name} from element {piece.start} {what}"
                )
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
        """Return the kinds that the files hold of one parameter."""
        return [kind for kind, there in self._pieces if there == name]

    def names(self) -> list[str]:
        """Return the parameters that the files hold, in alphabetic order."""
        return sorted({name for _, name in self._pieces})

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return the elements `start` ... `stop` (default: all) of a flattened tensor, 1-D.

        Raises CheckpointError when the files do not hold this kind of the parameter.
        """
        if (kind, name) not in self._pieces:
            raise CheckpointError(
                f"{self.folder}: {kind} of {name} is missing (found: {self.kinds(name) or 'nothing'})"
            )
        if stop is None:
            stop = prod(self.shapes[name])
        parts = []
        for piece in self._pieces[kind, name]:
            first, last = max(start, piece.start), min(stop, piece.start + piece.numel)
            if first < last:
                values = self._handle(piece.file).get_slice(piece.key)
                parts.append(values[first - piece.start : last - piece.start])
        if not parts:
            return torch.zeros(0)
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)

    def whole(self, kind: str, name: str) -> torch.Tensor:
        """Return the whole tensor in its shape."""
        return self.read(kind, name).view(self.shapes[name])

    def pieces(self, kind: str, name: str, size: int) -> Iterator[torch.Tensor]:
        """Yield the elements of a flattened tensor in order, `size` at a time."""
        numel = prod(self.shapes[name])
        for start in range(0, numel, size):
            yield self.read(kind, name, start, min(start + size, numel))


def _parse_key(key: str, path: Path) -> tuple[str, int, str]:
    kind, _, rest = key.partition("/")
    start, _, name = rest.partition("/")
    if not (kind and start.isdigit() and name):
        raise CheckpointError(f"{path}: unknown key {key!r}; expected kind/first element/parameter")
    return kind, int(start), name
