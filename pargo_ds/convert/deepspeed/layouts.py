"""Where a parameter's elements lie in the flat vectors that ZeRO's ranks save.

ZeRO 1 and 2 lay the parameters of a group one behind the other, pad the end, and cut the whole into one piece per rank.
ZeRO 3 cuts every parameter into one piece per rank (the last ones short or empty, padded to the same length) and lays a
rank's pieces one behind the other. Source: DeepSpeed 0.19.8, utils/zero_to_fp32.py, runtime/zero/stage_1_and_2.py
(`__init__`), runtime/zero/partition_parameters.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, prod
from pathlib import Path

import torch

from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.convert.deepspeed.pickles import PickledTensor, StatesFile

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Slice:
    """Elements `start` ... `stop` of a flattened tensor in a file."""

    tensor: PickledTensor
    start: int
    stop: int


@dataclass(frozen=True)
class Assembled:
    """One tensor of the model, made of slices in the order of its elements."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    slices: tuple[Slice, ...]

    def read(self) -> torch.Tensor:
        """A new tensor. Raises CheckpointError when a file that holds a slice was altered."""
        parts = [part.tensor.flat(part.start, part.stop) for part in self.slices]
        return torch.cat(parts).view(self.shape) if parts else torch.empty(self.shape, dtype=self.dtype)

    def pieces(self, size: int) -> Iterator[torch.Tensor]:
        """Its elements in order, 1-D and at most `size` at a time: views of the mapped files. Raises likewise."""
        for part in self.slices:
            yield from part.tensor.flat(part.start, part.stop).split(size)


def as_saved(tensor: PickledTensor) -> Assembled:
    """A tensor that one file holds whole."""
    return Assembled(tensor.shape, tensor.dtype, (Slice(tensor, 0, tensor.numel),) if tensor.numel else ())


def in_one_row(group: Shapes, flats: Sequence[PickledTensor], paddings: Sequence[int]) -> dict[str, Assembled]:
    """A group of ZeRO 1 and 2.

    Args:
        group: names and shapes in the order in which they were flattened.
        flats: every rank's piece.
        paddings: elements left free behind each parameter.

    Raises CheckpointError when the pieces are not as long together as the shapes and their alignment need.
    """
    ends = list(accumulate(flat.numel for flat in flats))
    align = 2 * len(flats)
    found, start = {}, 0
    for (name, shape), padding in zip(group.items(), paddings, strict=True):
        stop = start + prod(shape)
        slices = [
            Slice(flat, max(start - (end - flat.numel), 0), min(stop, end) - (end - flat.numel))
            for flat, end in zip(flats, ends, strict=True)
            if end > start and end - flat.numel < stop
        ]
        found[name] = Assembled(tuple(shape), flats[0].dtype, tuple(slices))
        start = stop + padding
    if not 0 <= ends[-1] - start < align:
        raise CheckpointError(
            f"{_files(flats)}: the ranks hold {ends[-1]:,} elements of a group that needs {start:,} (and less than "
            f"{align} of alignment): {_some(group)}; a file was cut, or belongs to another checkpoint"
        )
    return found


def piece_per_rank(shape: Sequence[int], pieces: Sequence[Slice]) -> Assembled:
    """A parameter of ZeRO 3 from its equally long pieces, of which the last ones end in padding."""
    left, slices = prod(shape), []
    for piece in pieces:
        length = min(left, piece.stop - piece.start)
        if length:
            slices.append(Slice(piece.tensor, piece.start, piece.start + length))
        left -= length
    return Assembled(tuple(shape), pieces[0].tensor.dtype, tuple(slices))


def rank_by_rank(group: Shapes, flats: Sequence[PickledTensor]) -> dict[str, Assembled]:
    """A group of ZeRO 3. Raises CheckpointError when a rank's vector has not the length that the shapes need."""
    lengths = [ceil(prod(shape) / len(flats)) for shape in group.values()]
    for flat in flats:
        if flat.numel != sum(lengths):
            raise CheckpointError(
                f"{flat.archive.path}: holds {flat.numel:,} elements of a group that needs {sum(lengths):,} on each of "
                f"{len(flats)} ranks: {_some(group)}; the file was cut, or belongs to another checkpoint"
            )
    ends = accumulate(lengths)
    return {
        name: piece_per_rank(shape, [Slice(flat, end - length, end) for flat in flats])
        for (name, shape), length, end in zip(group.items(), lengths, ends, strict=True)
    }


def partitioned(name: str, shape: Sequence[int], pieces: Sequence[PickledTensor]) -> Assembled:
    """A frozen parameter of ZeRO 3: partitioned, or whole on every rank where ZeRO left it alone."""
    if pieces[0].numel == prod(shape):
        whole = as_saved(pieces[0])
        return Assembled(tuple(shape), whole.dtype, whole.slices)
    length = ceil(prod(shape) / len(pieces))
    for piece in pieces:
        if piece.numel != length or piece.dtype != pieces[0].dtype:
            raise CheckpointError(
                f"{piece.archive.path}: {piece.numel:,} elements in {piece.dtype} of frozen {name}; its shape "
                f"{list(shape)} needs {length:,} in {pieces[0].dtype} on each of {len(pieces)} ranks; the file belongs "
                "to another checkpoint"
            )
    return piece_per_rank(shape, [Slice(piece, 0, piece.numel) for piece in pieces])


def check_addresses(files: Sequence[StatesFile], trained: Mapping[str, Assembled]) -> None:
    """Compare with what every rank of ZeRO 1 and 2 notes about its piece (`param_slice_mappings`), where it does.

    Raises CheckpointError naming the file and the first parameter that lies elsewhere: the file is another rank's.
    """
    found: dict[Path, dict[str, tuple[int, int]]] = {file.path: {} for file in files}
    for name, tensor in trained.items():
        for part in tensor.slices:
            found[part.tensor.archive.path][name] = (part.start, part.stop - part.start)
    for file in files:
        noted = file.content["optimizer_state_dict"].get("param_slice_mappings")
        if noted is None:
            continue
        said = {name: (place.start, place.numel) for group in noted for name, place in group.items()}
        held = found[file.path]
        if wrong := sorted(name for name in said | held if said.get(name) != held.get(name)):
            raise CheckpointError(
                f"{file.path}: it notes (first element, elements) {said.get(wrong[0])} of {wrong[0]}, its rank holds "
                f"{held.get(wrong[0])}; the file is another rank's, or of another checkpoint"
            )


def tied_names(
    saved: Mapping[str, PickledTensor], known: Mapping[str, str], first: Sequence[str] = ()
) -> dict[str, str]:
    """Second names -> first names: those that are known, and tensors that are the same piece of the same storage.

    Args:
        saved: tensors of one file by their names.
        known: ties that are known.
        first: names that are first names in any case.
    """
    names: dict[tuple, str] = {}
    shared = dict(known)
    for name in [*first, *saved]:
        if name in shared or name not in saved or saved[name].numel == 0:
            continue
        tensor = saved[name]
        place = (tensor.key, tensor.offset, tensor.shape, tensor.stride)
        if names.setdefault(place, name) != name:
            shared[name] = names[place]
    return shared


def _some(group: Shapes, most: int = 4) -> str:
    names = list(group)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _files(flats: Sequence[PickledTensor]) -> str:
    first, last = flats[0].archive.path, flats[-1].archive.path
    return str(first) if len(flats) == 1 else f"{first} ... {last.name}"
