"""Read the Hugging Face folder of a ParGo model by memory map, and finish such a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pargo_ds.checkpoint.safetensors_file import open_safetensors
from pargo_ds.convert.shipped_code import ship_code
from pargo_ds.convert.weight_files import DTYPES, INDEX, SINGLE
from pargo_ds.convert.weights import (
    Spec,
    WeightSource,
    check_names,
    expected_shapes,
    tied_names,
    without_values,
)
from pargo_ds.errors import CheckpointError
from pargo_ds.files.sha256sums import HASHES, check_hashes, listable_files, write_hashes
from pargo_ds.model import ParGoConfig, ParGoProcessor

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth")


class HFFolder(WeightSource):
    """An exported folder as a source of weights. If it has a SHA256SUMS, every file is compared
    with it first, and `checked` is True.

    Raises:
        CheckpointError: the folder does not exist; a file is altered, missing or cannot be read;
            the configuration is that of another kind of model; tensors are missing, unexpected or
            have another shape (listed together); or an adapter is not merged.
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
        self._take_tied_once()
        self.specs = {name: self._spec(*place) for name, place in self._places.items()}
        check_names(
            folder, {n: spec.shape for n, spec in self.specs.items()}, expected_shapes(self.config)
        )

    def _take_tied_once(self) -> None:
        """Keep each tied weight under its first name; files may have it under either name or
        both.
        """
        for second, first in tied_names(without_values(self.config)).items():
            if second not in self._places:
                continue
            if first in self._places and not torch.equal(self.read(first), self.read(second)):
                raise CheckpointError(
                    f"{self.where}: {first} and {second} differ, but config.json says they are tied"
                )
            self._places.setdefault(first, self._places[second])
            del self._places[second]

    def _find_files(self) -> dict[str, Path]:
        """Return the file of each tensor, as the files themselves say. If there is an index, the
        files must agree with it.
        """
        index = self.where / INDEX
        if not index.is_file():
            path = self.where / SINGLE
            if not path.is_file():
                raise CheckpointError(f"{self.where} holds neither {SINGLE} nor {INDEX}")
            return dict.fromkeys(self._handle(path).keys(), path)
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            listed = {str(name): str(file) for name, file in weight_map.items()}
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}") from error
        found: dict[str, Path] = {}
        for file in sorted(set(listed.values())):
            path = self.where / file
            if Path(file).name != file or not path.is_file():
                raise CheckpointError(
                    f"{index} names {file}, which is not there; did a download stop?"
                )
            found |= dict.fromkeys(self._handle(path).keys(), path)
        named = {name: path.name for name, path in found.items()}
        differing = sorted(n for n in named.keys() | listed if named.get(n) != listed.get(n))
        if differing:
            raise CheckpointError(
                f"{index} and the files beside it differ about {', '.join(differing[:12])}"
            )
        return found

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        return self._open[path]

    def _spec(self, path: Path, key: str) -> Spec:
        view = self._handle(path).get_slice(key)
        if view.get_dtype() not in DTYPES:
            raise CheckpointError(
                f"{path}: {key} has type {view.get_dtype()}, known are {', '.join(DTYPES)}"
            )
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
    """Read the configuration of a ParGo model. Raises CheckpointError when there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no Hugging Face folder: it has no config.json")
    try:
        kind = json.loads(path.read_text()).get("model_type")
        if kind == ParGoConfig.model_type:
            return ParGoConfig.from_pretrained(folder)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    raise CheckpointError(
        f"{path} describes a model of type {kind}; expected {ParGoConfig.model_type}"
    )


def copy_description(source: Path, folder: Path) -> None:
    """Copy a Hugging Face folder without its weights, code, hashes and hidden files. finish_folder
    then adds new code and hashes.
    """
    ignored = shutil.ignore_patterns(*WEIGHT_FILES, "*.py", "__pycache__", HASHES, ".*")
    shutil.copytree(source, folder, ignore=ignored, dirs_exist_ok=True)


def finish_folder(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Do the last step of every export: write the model's code beside its weights, and then the
    hash of every file. `known` is the result of write_hf_weights.
    """
    ship_code(folder)
    write_hashes(folder, known)


def rehash(folder: Path) -> int:
    """Write the hashes of an export again, after a change that was intended. Return the number of
    listed files.

    Raises CheckpointError when the folder is no export, or when a file was not downloaded.
    """
    read_config(folder)
    write_hashes(folder)
    return len(listable_files(folder))
