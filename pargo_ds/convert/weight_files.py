"""Write safetensors files tensor by tensor.

The function save_file of safetensors needs all tensors of a file in memory. The format is simple (a
length, a JSON header and the bytes), so this module writes each tensor when it is read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pargo_ds.convert.weights import InPieces, Spec, TensorSource, WeightSource, progress
from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_output import flush

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_BYTES = 4_000_000_000
HELD = 16 << 20
"""A piece of at most this number of bytes is hashed while the next one is read; larger pieces would
double the memory.
"""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}


def write_hf_weights(
    source: WeightSource, folder: Path, file_bytes: int = FILE_BYTES
) -> dict[str, str]:
    """Write all tensors of `source` as safetensors: one file, or several files with an index.

    Returns the SHA-256 of each weight file by its name.
    """
    files: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in source.specs.items():
        if files[-1] and filled + spec.bytes > file_bytes:
            files.append({})
            filled = 0
        files[-1][name] = spec
        filled += spec.bytes
    total = sum(spec.bytes for spec in source.specs.values())
    weight_map: dict[str, str] = {}
    hashes, flushed = {}, []
    # A file is flushed to the disk while the next one is written.
    with progress("Hugging Face folder", total) as advance, ThreadPoolExecutor(1) as flusher:
        for number, specs in enumerate(files, start=1):
            name = SINGLE
            if len(files) > 1:
                name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            hashes[name] = write_safetensors(folder / name, specs, source, advance)
            flushed.append(flusher.submit(flush, folder / name))
            weight_map |= dict.fromkeys(specs, name)
    for done in flushed:
        done.result()  # the system reports a failed write only once
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return hashes


def write_safetensors(
    path: Path, specs: Mapping[str, Spec], source: TensorSource, advance: Any
) -> str:
    """Write one safetensors file and return its SHA-256. One tensor is in memory at a time, or two
    pieces of one tensor.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        if spec.dtype not in NAMES_OF_DTYPES:
            raise CheckpointError(
                f"{source.where}: {name} has type {spec.dtype}, which safetensors files here lack"
            )
        places = [end, end + spec.bytes]
        header[name] = {
            "dtype": NAMES_OF_DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": places,
        }
        end += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    digest = hashlib.sha256(head)
    # hashlib releases the interpreter's lock: a piece is hashed while the next is read and written.
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        file.write(head)
        hashed = pool.submit(lambda: None)
        for name, spec in specs.items():
            written = 0
            for piece in _pieces(source, name, spec):
                values = piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
                hashed.result()
                hashed = pool.submit(digest.update, values)
                written += file.write(values)
                if values.nbytes > HELD:
                    hashed.result()
                advance(piece.nbytes)
            if written != spec.bytes:
                raise CheckpointError(
                    f"{source.where}: {name} came as {written} bytes, not as {spec.bytes} ({spec})"
                )
        hashed.result()
    return digest.hexdigest()


def _pieces(source: TensorSource, name: str, spec: Spec) -> Iterable[torch.Tensor]:
    """Return the pieces of a tensor, or the whole tensor if the source has no pieces."""
    if isinstance(source, InPieces):
        return source.pieces(name)
    return [_whole(source, name, spec)]


def _whole(source: TensorSource, name: str, spec: Spec) -> torch.Tensor:
    tensor = source.read(name)
    if (tuple(tensor.shape), tensor.dtype) != (spec.shape, spec.dtype):
        raise CheckpointError(
            f"{source.where}: {name} is {tensor.dtype} {list(tensor.shape)}, not {spec}"
        )
    return tensor
