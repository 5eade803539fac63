"""The safetensors files of a published model: a local folder, or a snapshot in the hub's cache; read by memory map."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError

from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.checkpoint.safetensors_file import open_safetensors
from pargo_ds.convert.weight_files import INDEX, SINGLE

ADAPTER_CONFIG = "adapter_config.json"
CAST_ONCE = ("F32", "BF16", "F16", "I64", "I32", "U8", "BOOL")
"""Types whose values come out the same whether they are cast at once or on the way through fp32, as loaders may do."""
Reader = Callable[[], torch.Tensor]
"""One tensor's values as they are stored: a view of the mapped file, which costs no anonymous memory."""


class PublishedFiles:
    """Tensors of some safetensors files under the names that they have there.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._open = {path: open_safetensors(path) for path in self.paths}
        self._where = {key: path for path, handle in self._open.items() for key in handle.keys()}  # noqa: SIM118
        self.shapes = {key: tuple(self._view(key).get_shape()) for key in self._where}

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> PublishedFiles | None:
        """The weights that from_pretrained takes for a folder or hub name; None when they are not safetensors, or an
        adapter lies over them."""
        if fetch_file(name, revision, ADAPTER_CONFIG) is not None:
            return None
        single = fetch_file(name, revision, SINGLE)
        if single is not None:
            return cls([single])
        index = fetch_file(name, revision, INDEX)
        if index is None:
            return None
        try:
            files = sorted({str(file) for file in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}") from error
        found = {file: fetch_file(name, revision, file) if Path(file).name == file else None for file in files}
        if missing := [file for file, path in found.items() if path is None]:
            raise CheckpointError(f"{index} names {', '.join(missing)}, which are not there; did a download stop?")
        return cls([path for path in found.values() if path is not None])

    def _view(self, key: str) -> Any:
        return self._open[self._where[key]].get_slice(key)

    def is_fp32(self, key: str) -> bool:
        """Whether a tensor is stored in fp32."""
        return self._view(key).get_dtype() == "F32"

    def reader(self, key: str) -> Reader:
        """Reads one tensor. The reader raises CheckpointError naming file and tensor."""
        path = self._where[key]

        def read() -> torch.Tensor:
            try:
                return self._open[path].get_tensor(key)
            except (SafetensorError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{path}: {key} cannot be read ({error})") from error

        return read

    def locate(self, wanted: Mapping[str, tuple[int, ...]], namings: Sequence[Callable[[str], str]]) -> dict | None:
        """name -> Reader, by the first way of naming under which all of `wanted` are there with their shapes."""
        for naming in namings:
            keys = {name: naming(name) for name in wanted}
            fits = all(self.shapes.get(key) == tuple(wanted[name]) for name, key in keys.items())
            if fits and all(self._view(key).get_dtype() in CAST_ONCE for key in keys.values()):
                return {name: self.reader(key) for name, key in keys.items()}
        return None


def fetch_file(name: str, revision: str | None, file: str) -> Path | None:
    """The file of a folder, or of the hub (downloaded unless it is in the cache); None when there is no such file."""
    folder = Path(name)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except EntryNotFoundError:
        return None
