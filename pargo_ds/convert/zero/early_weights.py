"""Writing what trained before the model is built.

Importing transformers and building the model take seconds, which are longer than moving a billion weights. A checkpoint
that names all of the model's tensors needs neither for what trained: these are written in a thread meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pargo_ds.convert.weight_files import write_hf_weights
from pargo_ds.convert.weights import BASE_LAYER, LORA, Spec, total_bytes
from pargo_ds.convert.whole_output import check_space
from pargo_ds.convert.zero.checkpoint_files import CheckpointFiles

if TYPE_CHECKING:
    from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights


def write_weights(
    files: CheckpointFiles, dtype: torch.dtype, build: Callable[[], CheckpointWeights], folder: Path, file_bytes: int
) -> tuple[CheckpointWeights, dict[str, str]]:
    """Write the weights of a checkpoint in `dtype` into the empty `folder`, while `build` makes the source of them all.

    Returns that source and what write_hf_weights returns. Raises CheckpointError when the disk is too full or a file
    cannot be read, and what `build` raises. Where the checkpoint does not name all tensors, or others than the source
    does (frozen weights may have been left out when it was saved), all are written once the source is there.
    """
    specs = early_specs(files, dtype)
    if specs is not None:
        check_space(folder, total_bytes(specs.values()))
        early = _EarlyWeights(files, specs)
        with ThreadPoolExecutor(1, "weights") as thread:
            writing = thread.submit(write_hf_weights, early, folder, file_bytes)
            try:
                source = build()
                if source.specs == specs:
                    early.built.set_result(source)
                    return source, writing.result()
            finally:
                early.stop()
        for path in folder.iterdir():
            path.unlink()
    else:
        source = build()
    check_space(folder, total_bytes(source.specs.values()))
    return source, write_hf_weights(source, folder, file_bytes)


def early_specs(files: CheckpointFiles, dtype: torch.dtype) -> dict[str, Spec] | None:
    """What CheckpointWeights will say of its tensors in `dtype`, those that trained first; None when only it knows."""
    if files.tensors is None:
        return None
    names = sorted((name for name in files.tensors if LORA not in name), key=lambda name: name not in files.shapes)
    found = {name: files.tensors[name] for name in names}
    return {
        name.replace(BASE_LAYER, ""): Spec(spec.shape, dtype if spec.dtype.is_floating_point else spec.dtype)
        for name, spec in found.items()
    }


class _EarlyWeights:
    """A source of weights that gives what trained at once and waits for the built one with all others."""

    def __init__(self, files: CheckpointFiles, specs: Mapping[str, Spec]) -> None:
        self.files, self.where, self.specs = files, files.where, specs
        self.built: Future[CheckpointWeights] = Future()
        self._trained = {name.replace(BASE_LAYER, ""): name for name in files.shapes}
        self._stopped = False

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The elements of one tensor in order, in its type."""
        trained = name in self._trained
        for piece in self.files.pieces(self._trained[name]) if trained else self.built.result().pieces(name):
            if self._stopped:
                raise CancelledError
            yield piece.to(self.specs[name].dtype)

    def stop(self) -> None:
        """Whoever reads gets CancelledError: at the next piece, or now where it waits for the built source."""
        self._stopped = True
        self.built.cancel()
