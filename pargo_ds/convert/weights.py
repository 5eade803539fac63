"""Weights under their Hugging Face names, wherever they lie: what every converter reads from.

Tied weights have one name, the first: that of the word embeddings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn
from tqdm import tqdm

from pargo_ds.checkpoint.manifest import CheckpointError

if TYPE_CHECKING:  # importing the model takes seconds, in which weights can be moved already
    from pargo_ds.model import ParGoConfig, ParGoForConditionalGeneration, ParGoProcessor

LLM = "llm."
LORA = ".lora_"
"""Part of the names of an adapter's own weights."""
BASE_LAYER = "base_layer."
"""What peft adds to the name of a layer that it wraps."""


@dataclass(frozen=True)
class Spec:
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class WeightSource(Protocol):
    """A model's weights, one at a time."""

    where: Path
    """The folder, for messages."""
    config: ParGoConfig
    specs: Mapping[str, Spec]
    """Every tensor of the model by its name, checked against the configuration."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, whole. Raises CheckpointError naming file and tensor when it cannot be read."""
        ...

    def processor(self) -> ParGoProcessor: ...

    def write_description(self, folder: Path) -> None:
        """Everything of a Hugging Face folder but the weights: configuration, tokenizer, template, card."""
        ...


@runtime_checkable
class InPieces(Protocol):
    """A source that can also give a tensor a little at a time, so that less is copied and held."""

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The elements of one tensor in their order, as 1-D tensors of its type."""
        ...


def expected_shapes(config: ParGoConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a model of this configuration saves, tied ones under their first name."""
    model = without_values(config)
    second = tied_names(model)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in second}


def without_values(config: ParGoConfig) -> ParGoForConditionalGeneration:
    """A model on the meta device."""
    from pargo_ds.model import ParGoForConditionalGeneration

    with torch.device("meta"):
        return ParGoForConditionalGeneration(config)


def tied_names(model: nn.Module) -> dict[str, str]:
    """Second names of shared parameters -> their first name."""
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
    """CheckpointError that lists missing, unexpected and misshapen tensors together."""
    faults = []
    if missing := sorted(expected.keys() - found.keys()):
        faults.append(f"missing {_listed(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        faults.append(f"unexpected {_listed(unexpected)}")
    misshapen = [
        f"{name} {list(found[name])} instead of {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    if misshapen:
        faults.append(f"of another shape {_listed(misshapen)}")
    if faults:
        raise CheckpointError(f"{where} does not hold the model that its configuration describes: {'; '.join(faults)}")


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{more})"


def total_bytes(specs: Iterable[Spec]) -> int:
    return sum(spec.bytes for spec in specs)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A bar over bytes on standard error, where that is a terminal; yields what is called with each piece's bytes."""
    with tqdm(total=total, unit="B", unit_scale=True, desc=title, file=sys.stderr, disable=None) as bar:
        yield bar.update
