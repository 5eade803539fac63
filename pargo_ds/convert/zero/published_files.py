"""The safetensors files of a published model, in a local folder or in the hub's cache. They are
read by memory map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError

from pargo_ds.checkpoint.safetensors_file import open_safetensors
from pargo_ds.convert.weight_files import INDEX, SINGLE
from pargo_ds.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
CAST_ONCE = ("F32", "BF16", "F16", "I64", "I32", "U8", "BOOL")
"""Types of which a direct cast and a cast through fp32, as some loaders do, give the same
values.
"""
Reader = Callable[[], torch.Tensor]
"""Returns the stored values of one tensor: a view of the mapped file, which takes no anonymous
memory.
"""


class PublishedFiles:
    """The tensors of safetensors files by their names in the files.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._open = {path: open_safetensors(path) for path in self.paths}
        self._where: dict[str, Path] = {}
        for path, handle in self._open.items():
            self._where |= dict.fromkeys(handle.keys(), path)
        self.shapes = {key: tuple(self._view(key).get_shape()) for key in self._where}

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> PublishedFiles | None:
        """Return the weights that from_pretrained loads for a folder or a hub name; None if they
        are not in safetensors files, or if the folder is an adapter.
        """
        if fetch_file(name, revision, ADAPTER_CONFIG) is not None:
            return None
        single = fetch_file(name, revision, SINGLE)
        if single is not None:
            return cls([single])
        index = fetch_file(name, revision, INDEX)
        if index is None:
            return None
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            files = sorted({str(file) for file in weight_map.values()})
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}") from error
        paths, missing = [], []
        for file in files:
            path = None
            if Path(file).name == file:
                path = fetch_file(name, revision, file)
            if path is None:
                missing.append(file)
            else:
                paths.append(path)
        if missing:
            raise CheckpointError(
                f"{index} names {', '.join(missing)}, which are not there; did a download stop?"
            )
        return cls(paths)

    def _view(self, key: str) -> Any:
        return self._open[self._where[key]].get_slice(key)

    def is_fp32(self, key: str) -> bool:
        """Whether a tensor is stored in fp32."""
        return self._view(key).get_dtype() == "F32"

    def reader(self, key: str) -> Reader:
        """Return a reader of one tensor. The reader raises CheckpointError naming file and
        tensor.
        """
        path = self._where[key]

        def read() -> torch.Tensor:
            try:
                return self._open[path].get_tensor(key)
            except (SafetensorError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{path}: {key} cannot be read ({error})") from error

        return read

    def locate(
        self, wanted: Mapping[str, tuple[int, ...]], namings: Sequence[Callable[[str], str]]
    ) -> dict | None:
        """Return a reader for each wanted name, or None if the files lack one of them.

        `namings` are functions from wanted names to names in the files; the first one is used that
        finds all tensors with their shapes.
        """
        for naming in namings:
            keys = {name: naming(name) for name in wanted}
            fits = all(self.shapes.get(key) == tuple(wanted[name]) for name, key in keys.items())
            if fits and all(self._view(key).get_dtype() in CAST_ONCE for key in keys.values()):
                return {name: self.reader(key) for name, key in keys.items()}
        return None


def fetch_file(name: str, revision: str | None, file: str) -> Path | None:
    """Return the path of a file in a folder or on the hub (it is downloaded unless it is in the
    cache); None if there is no such file.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / file).is_file():
            return None
        return folder / file
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except EntryNotFoundError:
        return None
