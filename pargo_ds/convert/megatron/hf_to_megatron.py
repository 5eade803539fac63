"""Weights of any source -> a torch_dist checkpoint: the LLM as a megatron-core GPTModel, the rest
under `pargo.`.

OUT/  .metadata  metadata.json  common.pt  __0_0.distcp ...    what dist_checkpointing.load reads
      pargo/gpt_model.json       arguments of TransformerConfig and GPTModel
      pargo/huggingface/         configuration, tokenizer and template, for the way back
      pargo/manifest.json        size and hash of every other file
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from pargo_ds.checkpoint.manifest import describe_file, hash_of
from pargo_ds.convert.megatron.arguments import gpt_arguments
from pargo_ds.convert.megatron.layout import Entry, Layout
from pargo_ds.convert.megatron.torch_dist import FILE_BYTES, Chunk, write_torch_dist
from pargo_ds.convert.shipped_code import forget_code
from pargo_ds.convert.weights import LLM, WeightSource, progress, total_bytes
from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_output import whole_output

OURS = "pargo"
DESCRIPTION, ARGUMENTS, MANIFEST = (
    f"{OURS}/huggingface",
    f"{OURS}/gpt_model.json",
    f"{OURS}/manifest.json",
)
PREFIX = "pargo."
"""Prefix of the keys of vision tower and projector."""


def to_megatron(
    source: WeightSource,
    out: Path,
    *,
    separate_layers: bool = False,
    force: bool = False,
    file_bytes: int = FILE_BYTES,
) -> int:
    """Write the folder `out`, which is whole or absent. Return the number of tensors of the source.
    The conversion takes as much memory as the largest tensor of a layer, or as the embedding.

    Args:
        separate_layers: write one key for each layer (megatron-core's `non_homogeneous_layers`)
            instead of stacked layers.
        file_bytes: a new .distcp file begins after this number of bytes.

    Raises:
        CheckpointError: the LLM has something that GPTModel lacks, its tensors cannot be read,
            `out` exists, or the disk is too full.
    """
    text = source.config.text_config
    layout, arguments = Layout.of(text), gpt_arguments(text)
    chunks = list(chunks_of(source, layout, stacked=not separate_layers))
    needed = total_bytes(source.specs.values())
    with whole_output(out, force=force, needed=needed, sources=[source.where]) as aside:
        with progress("megatron-core checkpoint", needed) as advance:
            content = {"non_homogeneous_layers": True} if separate_layers else None
            extra = layout.extra_states(stacked=not separate_layers)
            write_torch_dist(aside, chunks, extra, content, advance, file_bytes)
        (aside / OURS).mkdir()
        (aside / ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n")
        source.write_description(aside / DESCRIPTION)
        forget_code(aside / DESCRIPTION)
        write_manifest(aside)
    return len(source.specs)


def chunks_of(source: WeightSource, layout: Layout, stacked: bool) -> Iterator[Chunk]:
    """Yield the chunks to write, in the order of the model; no tensor is read yet."""
    named = set()
    for entry in layout.entries():
        specs = [source.specs[LLM + part] for part in entry.parts]
        dtypes = {spec.dtype for spec in specs}
        if len(dtypes) > 1:
            raise CheckpointError(
                f"{source.where}: {', '.join(entry.parts)} become one tensor but differ: {dtypes}"
            )
        (dtype,) = dtypes
        shape = tuple(
            layout.join(
                entry, [torch.empty(s.shape, dtype=s.dtype, device="meta") for s in specs]
            ).shape
        )
        named |= {LLM + part for part in entry.parts}
        read = partial(_joined, source, layout, entry)
        if stacked and entry.layer is not None:
            offsets = (entry.layer, *(0 for _ in shape))
            whole = (layout.layers, *shape)
            yield Chunk(
                entry.key(True),
                whole,
                offsets,
                (1, *shape),
                dtype,
                partial(_stacked, read),
            )
        else:
            yield Chunk(entry.key(stacked), shape, (0,) * len(shape), shape, dtype, read)
    for name, spec in source.specs.items():
        if name not in named:
            if name.startswith(LLM):
                raise CheckpointError(f"{source.where}: {name} has no place in a GPTModel")
            zeros = (0,) * len(spec.shape)
            yield Chunk(
                PREFIX + name, spec.shape, zeros, spec.shape, spec.dtype, partial(source.read, name)
            )


def _joined(source: WeightSource, layout: Layout, entry: Entry) -> torch.Tensor:
    return layout.join(entry, [source.read(LLM + part) for part in entry.parts])


def _stacked(read: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the tensor of a layer as one row of the stacked tensor of all layers."""
    return read()[None]


def write_manifest(folder: Path) -> None:
    """Write the sizes and hashes of all files of the checkpoint."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): describe_file(path) for path in paths}
    body = {"format": "pargo_ds torch_dist 1", "files": files}
    (folder / MANIFEST).write_text(json.dumps(body | {"hash": hash_of(body)}, indent=1) + "\n")
