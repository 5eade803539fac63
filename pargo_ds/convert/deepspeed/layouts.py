"""Find the elements of a parameter in the flat vectors that the ranks of ZeRO save.

ZeRO 1 and 2 concatenate the parameters of a group, pad the end, and cut the result into one piece
for each rank. ZeRO 3 cuts every parameter into one piece for each rank (all of the same length, the
last ones padded) and concatenates the pieces of a rank. Source: DeepSpeed
0.19.8, utils/zero_to_fp32.py, runtime/zero/stage_1_and_2.py (`__init__`),
runtime/zero/partition_parameters.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, prod
from pathlib import Path

import torch

from pargo_ds.convert.deepspeed.pickles import SavedTensor, StatesFile
from pargo_ds.errors import CheckpointError, listed

NAMES_SHOWN = 4
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Slice:
    """The elements `start` ... `stop` of a flattened tensor in a file."""

    tensor: SavedTensor
    start: int
    stop: int


@dataclass(frozen=True)
class Assembled:
    """One tensor of the model as slices, in the order of its elements."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    slices: tuple[Slice, ...]

    def read(self) -> torch.Tensor:
        """Return a new tensor. Raises CheckpointError when a file with a slice was altered."""
        parts = [part.tensor.flat(part.start, part.stop) for part in self.slices]
        if not parts:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.cat(parts).view(self.shape)

    def pieces(self, size: int) -> Iterator[torch.Tensor]:
        """Yield the elements in order, as 1-D views of the mapped files of at most `size` elements.
        Raises as `read`.
        """
        for part in self.slices:
            yield from part.tensor.flat(part.start, part.stop).split(size)


def as_saved(tensor: SavedTensor) -> Assembled:
    """Return a tensor that is whole in one file."""
    if not tensor.numel:
        return Assembled(tensor.shape, tensor.dtype, ())
    return Assembled(tensor.shape, tensor.dtype, (Slice(tensor, 0, tensor.numel),))


def in_one_row(
    group: Shapes, flats: Sequence[SavedTensor], paddings: Sequence[int]
) -> dict[str, Assembled]:
    """Return the parameters of a group of ZeRO 1 and 2.

    Args:
        group: names and shapes in the order in which they were flattened.
        flats: the piece of each rank.
        paddings: number of unused elements after each parameter.

    Raises CheckpointError when the length of all pieces does not fit the shapes and their
    alignment.
    """
    ends = list(accumulate(flat.numel for flat in flats))
    align = 2 * len(flats)
    found, start = {}, 0
    for (name, shape), padding in zip(group.items(), paddings, strict=True):
        stop = start + prod(shape)
        slices = []
        for flat, end in zip(flats, ends, strict=True):
            first = end - flat.numel  # the rank's first element, counted over all ranks
            if end > start and first < stop:
                slices.append(Slice(flat, max(start - first, 0), min(stop, end) - first))
        found[name] = Assembled(tuple(shape), flats[0].dtype, tuple(slices))
        start = stop + padding
    if not 0 <= ends[-1] - start < align:
        raise CheckpointError(
            f"{_files(flats)}: the ranks hold {ends[-1]:,} elements of a group that needs {start:,} (and less than "
            f"{align} of alignment): {listed(group, NAMES_SHOWN)}; a file was cut, or belongs to another checkpoint"
        )
    return found


def piece_per_rank(shape: Sequence[int], pieces: Sequence[Slice]) -> Assembled:
    """Return a parameter of ZeRO 3 from its pieces of equal length; the last ones end in
    padding.
    """
    left, slices = prod(shape), []
    for piece in pieces:
        length = min(left, piece.stop - piece.start)
        if length:
            slices.append(Slice(piece.tensor, piece.start, piece.start + length))
        left -= length
    return Assembled(tuple(shape), pieces[0].tensor.dtype, tuple(slices))


def rank_by_rank(group: Shapes, flats: Sequence[SavedTensor]) -> dict[str, Assembled]:
    """Return the parameters of a group of ZeRO 3.

    Raises CheckpointError when the length of a rank's vector does not fit the shapes.
    """
    lengths = [ceil(prod(shape) / len(flats)) for shape in group.values()]
    for flat in flats:
        if flat.numel != sum(lengths):
            raise CheckpointError(
                f"{flat.file.path}: holds {flat.numel:,} elements of a group that needs {sum(lengths):,} on each of "
                f"{len(flats)} ranks: {listed(group, NAMES_SHOWN)}; the file was cut, or belongs to another checkpoint"
            )
    found = {}
    ends = accumulate(lengths)
    for (name, shape), length, end in zip(group.items(), lengths, ends, strict=True):
        pieces = [Slice(flat, end - length, end) for flat in flats]
        found[name] = piece_per_rank(shape, pieces)
    return found


def partitioned(name: str, shape: Sequence[int], pieces: Sequence[SavedTensor]) -> Assembled:
    """Return a frozen parameter of ZeRO 3, which is partitioned or, if it is small, whole on each
    rank.
    """
    if pieces[0].numel == prod(shape):
        whole = as_saved(pieces[0])
        return Assembled(tuple(shape), whole.dtype, whole.slices)
    length = ceil(prod(shape) / len(pieces))
    for piece in pieces:
        if piece.numel != length or piece.dtype != pieces[0].dtype:
            raise CheckpointError(
                f"{piece.file.path}: {piece.numel:,} elements in {piece.dtype} of frozen {name}; its shape "
                f"{list(shape)} needs {length:,} in {pieces[0].dtype} on each of {len(pieces)} ranks; the file belongs "
                "to another checkpoint"
            )
    return piece_per_rank(shape, [Slice(piece, 0, piece.numel) for piece in pieces])


def check_addresses(files: Sequence[StatesFile], trained: Mapping[str, Assembled]) -> None:
    """Compare the places of parameters with those that the ranks of ZeRO 1 and 2 may note
    (`param_slice_mappings`).

    Raises CheckpointError naming the file and the first parameter with another place; such a file
    belongs to another rank.
    """
    found: dict[Path, dict[str, tuple[int, int]]] = {file.path: {} for file in files}
    for name, tensor in trained.items():
        for part in tensor.slices:
            found[part.tensor.file.path][name] = (part.start, part.stop - part.start)
    for file in files:
        noted = file.content["optimizer_state_dict"].get("param_slice_mappings")
        if noted is None:
            continue
        said: dict[str, tuple[int, int]] = {}
        for group in noted:
            for name, place in group.items():
                said[name] = (place.start, place.numel)
        held = found[file.path]
        if wrong := sorted(name for name in said | held if said.get(name) != held.get(name)):
            raise CheckpointError(
                f"{file.path}: it notes (first element, elements) {said.get(wrong[0])} of {wrong[0]}, its rank holds "
                f"{held.get(wrong[0])}; the file is another rank's, or of another checkpoint"
            )


def tied_names(
    saved: Mapping[str, SavedTensor],
    known: Mapping[str, str],
    first: Sequence[str] = (),
) -> dict[str, str]:
    """Return the first name of each tied tensor by its other names. Tensors are tied if `known`
    says so, or if they are the same part of the same storage.

    Args:
        saved: the tensors of one file by their names.
        known: known ties.
        first: names that must be first names.
    """
    names: dict[tuple, str] = {}
    shared = dict(known)
    for name in [*first, *saved]:
        if name in shared or name not in saved or saved[name].numel == 0:
            continue
        tensor = saved[name]
        place = (tensor.tensor.data_ptr(), tensor.shape, tensor.tensor.stride())
        if names.setdefault(place, name) != name:
            shared[name] = names[place]
    return shared


def _files(flats: Sequence[SavedTensor]) -> str:
    first, last = flats[0].file.path, flats[-1].file.path
    if len(flats) == 1:
        return str(first)
    return f"{first} ... {last.name}"
