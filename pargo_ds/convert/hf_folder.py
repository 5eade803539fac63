"""A Hugging Face folder of a ParGo model: read by memory map, written tensor by tensor.

safetensors' own save_file wants all tensors of a file at once; the format is a length, a JSON header and the bytes, so
here they are written as they come.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pargo_ds.checkpoint.folder_hashes import HASHES, check_hashes, listable_files, write_hashes
from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.checkpoint.safetensors_file import open_safetensors
from pargo_ds.convert.shipped_code import ship_code
from pargo_ds.convert.weights import (
    EMBEDDING,
    HEAD,
    InPieces,
    Spec,
    WeightSource,
    check_names,
    expected_shapes,
    progress,
)
from pargo_ds.model import ParGoConfig, ParGoProcessor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth")
FILE_BYTES = 4_000_000_000
HELD = 16 << 20
"""Bytes of a piece that may wait for its hash while the next one is read; larger ones would double the memory."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}


class HFFolder(WeightSource):
    """An exported folder. Where it has a SHA256SUMS every file is compared with it first, and `checked` is True.

    Raises:
        CheckpointError: no such folder, files that are altered, missing or cannot be read, a configuration of another
            kind of model, tensors missing, unexpected or misshapen (listed together), an adapter that is not merged.
    """

    def __init__(self, folder: Path) -> None:
        self.where = folder
        self.checked = check_hashes(folder)
        self.config = read_config(folder)
        if (folder / "adapter").exists():
            raise CheckpointError(
                f"{folder} keeps LoRA apart in adapter/, which other formats have no place for; export it again with "
                "zero-to-hf --merge-lora"
            )
        self._open: dict[Path, Any] = {}
        self._places = {name: (path, name) for name, path in self._find_files().items()}
        if self.config.text_config.tie_word_embeddings:
            self._take_tied_once()
        self.specs = {name: self._spec(*place) for name, place in self._places.items()}
        check_names(folder, {n: spec.shape for n, spec in self.specs.items()}, expected_shapes(self.config))

    def _take_tied_once(self) -> None:
        """Files may hold tied weights under either name or both."""
        if HEAD not in self._places:
            return
        if EMBEDDING in self._places and not torch.equal(self.read(EMBEDDING), self.read(HEAD)):
            raise CheckpointError(f"{self.where}: {EMBEDDING} and {HEAD} differ, but config.json says they are tied")
        self._places.setdefault(EMBEDDING, self._places[HEAD])
        del self._places[HEAD]

    def _find_files(self) -> dict[str, Path]:
        """Tensor -> file, from the files themselves; they must agree with the index where there is one."""
        index = self.where / INDEX
        if not index.is_file():
            path = self.where / SINGLE
            if not path.is_file():
                raise CheckpointError(f"{self.where} holds neither {SINGLE} nor {INDEX}")
            return dict.fromkeys(self._handle(path).keys(), path)
        try:
            listed = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}") from error
        found = {}
        for file in sorted(set(listed.values())):
            path = self.where / file
            if Path(file).name != file or not path.is_file():
                raise CheckpointError(f"{index} names {file}, which is not there; did a download stop?")
            found |= dict.fromkeys(self._handle(path).keys(), path)
        differing = sorted(n for n in found.keys() | listed if n not in found or listed.get(n) != found[n].name)
        if differing:
            raise CheckpointError(f"{index} and the files beside it differ about {', '.join(differing[:12])}")
        return found

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        return self._open[path]

    def _spec(self, path: Path, key: str) -> Spec:
        view = self._handle(path).get_slice(key)
        if view.get_dtype() not in DTYPES:
            raise CheckpointError(f"{path}: {key} has type {view.get_dtype()}, known are {', '.join(DTYPES)}")
        return Spec(tuple(view.get_shape()), DTYPES[view.get_dtype()])

    def read(self, name: str) -> torch.Tensor:
        path, key = self._places[name]
        try:
            return self._handle(path).get_tensor(key)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: {key} cannot be read ({error})") from error

    def processor(self) -> ParGoProcessor:
        return ParGoProcessor.from_pretrained(self.where)

    def write_description(self, folder: Path) -> None:
        copy_description(self.where, folder)


def read_config(folder: Path) -> ParGoConfig:
    """The configuration of a ParGo model. Raises CheckpointError when there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no Hugging Face folder: it has no config.json")
    try:
        kind = json.loads(path.read_text()).get("model_type")
        if kind == ParGoConfig.model_type:
            return ParGoConfig.from_pretrained(folder)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    raise CheckpointError(f"{path} describes a model of type {kind}; expected {ParGoConfig.model_type}")


def copy_description(source: Path, folder: Path) -> None:
    """Copy a Hugging Face folder without its weights, code, hashes and hidden files; finish_folder adds new ones."""
    ignored = shutil.ignore_patterns(*WEIGHT_FILES, "*.py", "__pycache__", HASHES, ".*")
    shutil.copytree(source, folder, ignore=ignored, dirs_exist_ok=True)


def finish_folder(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """The last step of every export: the model's code beside its weights, then the hash of every file.

    `known`: what write_hf_weights returned.
    """
    ship_code(folder)
    write_hashes(folder, known)


def rehash(folder: Path) -> int:
    """Accept the files of an export as they are now, after a change that was meant; returns how many were listed.

    Raises CheckpointError when it is no export any more, or a file of it was not downloaded.
    """
    read_config(folder)
    write_hashes(folder)
    return len(listable_files(folder))


def write_hf_weights(source: WeightSource, folder: Path, file_bytes: int = FILE_BYTES) -> dict[str, str]:
    """Write all tensors of `source` as safetensors, in several files with an index when they need more than one.

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
    weight_map, hashes = {}, {}
    with progress("Hugging Face folder", total) as advance:
        for number, specs in enumerate(files, start=1):
            name = SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            hashes[name] = write_safetensors(folder / name, specs, source, advance)
            weight_map |= dict.fromkeys(specs, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return hashes


def write_safetensors(path: Path, specs: Mapping[str, Spec], source: WeightSource, advance: Any) -> str:
    """One safetensors file; one tensor is in memory at a time, or two pieces of one. Returns the file's SHA-256."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        if spec.dtype not in NAMES_OF_DTYPES:
            raise CheckpointError(f"{source.where}: {name} has type {spec.dtype}, which safetensors files here lack")
        places = [end, end + spec.bytes]
        header[name] = {"dtype": NAMES_OF_DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": places}
        end += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    digest = hashlib.sha256(head)
    # hashlib leaves the interpreter free: a piece is hashed while the next one is read and written.
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        file.write(head)
        hashed = pool.submit(lambda: None)
        for name, spec in specs.items():
            written = 0
            for piece in source.pieces(name) if isinstance(source, InPieces) else [_whole(source, name, spec)]:
                values = piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
                hashed.result()
                hashed = pool.submit(digest.update, values)
                written += file.write(values)
                if values.nbytes > HELD:
                    hashed.result()
                advance(piece.nbytes)
            if written != spec.bytes:
                raise CheckpointError(f"{source.where}: {name} came as {written} bytes, not as {spec.bytes} ({spec})")
        hashed.result()
    return digest.hexdigest()


def _whole(source: WeightSource, name: str, spec: Spec) -> torch.Tensor:
    tensor = source.read(name)
    if (tuple(tensor.shape), tensor.dtype) != (spec.shape, spec.dtype):
        raise CheckpointError(f"{source.where}: {name} is {tensor.dtype} {list(tensor.shape)}, not {spec}")
    return tensor
