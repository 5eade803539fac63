"""The sources of weights from which every converter reads, under their Hugging Face names.

Tied weights have one name, the first: that of the word embeddings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from tqdm import tqdm

from pargo_ds.errors import CheckpointError, listed
from pargo_ds.model import ParGoConfig, ParGoForConditionalGeneration, ParGoProcessor

NAMES_SHOWN = 12
LLM = "llm."
LORA = ".lora_"
"""A part of the name of each weight of an adapter."""
BASE_LAYER = "base_layer."
"""The part that peft adds to the name of a layer that it wraps."""


@dataclass(frozen=True)
class Spec:
    """The shape and the type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """The number of bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize


class TensorSource(Protocol):
    """A source of tensors, which are read one at a time."""

    where: Path
    """The folder, for messages."""

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises CheckpointError naming file and tensor when it cannot be read.
        """
        ...


class WeightSource(TensorSource, Protocol):
    """The weights of a model, which are read one at a time."""

    config: ParGoConfig
    specs: Mapping[str, Spec]
    """Shape and type of each tensor of the model; they fit the configuration."""

    def processor(self) -> ParGoProcessor:
        """Return the processor of the model."""
        ...

    def write_description(self, folder: Path) -> None:
        """Write the files of a Hugging Face folder except for the weights: configuration,
        tokenizer, template and model card.
        """
        ...


@runtime_checkable
class InPieces(Protocol):
    """A source that can also read a tensor in pieces, which takes less memory and fewer copies."""

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the elements of one tensor in order, as 1-D tensors of its type."""
        ...


def expected_shapes(config: ParGoConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that a model of this configuration saves; tied weights are
    listed under their first name.
    """
    model = without_values(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for second in tied_names(model):
        shapes.pop(second, None)
    return shapes


def exported_name(name: str) -> str:
    """Return the name that an export has for a weight (or a layer) that peft may have wrapped."""
    return name.replace(BASE_LAYER, "")


def without_values(config: ParGoConfig) -> ParGoForConditionalGeneration:
    """Return a model on the meta device."""
    with torch.device("meta"):
        return ParGoForConditionalGeneration(config)


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of each shared parameter by its other names."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return aliases


def check_names(
    where: Path | str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError when tensors are missing, unexpected or have another shape; one message
    lists all of them.
    """
    faults = []
    if missing := sorted(expected.keys() - found.keys()):
        faults.append(f"missing {_counted(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        faults.append(f"unexpected {_counted(unexpected)}")
    misshapen = []
    for name in sorted(expected.keys() & found.keys()):
        if tuple(found[name]) != tuple(expected[name]):
            misshapen.append(f"{name} {list(found[name])} instead of {list(expected[name])}")
    if misshapen:
        faults.append(f"of another shape {_counted(misshapen)}")
    if faults:
        raise CheckpointError(
            f"{where} does not hold the model that its configuration describes: {'; '.join(faults)}"
        )


def _counted(names: list[str]) -> str:
    return f"{len(names)} ({listed(names, NAMES_SHOWN)})"


def total_bytes(specs: Iterable[Spec]) -> int:
    """Return the bytes of all tensors together."""
    return sum(spec.bytes for spec in specs)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], Any]]:
    """Show a bar over bytes on standard error, if that is a terminal. It yields the function that
    must be called with the bytes of each piece.
    """
    with tqdm(
        total=total, unit="B", unit_scale=True, desc=title, file=sys.stderr, disable=None
    ) as bar:
        yield bar.update
