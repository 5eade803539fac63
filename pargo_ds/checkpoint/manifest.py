"""The manifest of a checkpoint: what it holds, and hashes that prove it whole.

A checkpoint folder is written aside and renamed, so `step_NNNNNNNN` either has a manifest or does not exist; the file
`latest` beside the folders names the newest one and moves last.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; says which file or setting is at fault."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of manifest.json."""

    format_version: int
    step: int
    world_size: int
    zero_stage: int
    model_fingerprint: str
    """Of the model's configuration and of what trains; a checkpoint of another model is refused."""
    data_state: dict[str, Any]
    """Position of the data plan after this step."""
    config: dict[str, Any]
    """The resolved run file."""
    frozen_sources: dict[str, Any]
    """Where weights that are not in the checkpoint come from."""
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]
    """Relative name -> {"bytes", "xxh3"}."""

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1))


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimizer steps."""
    return checkpoints / f"step_{step:08d}"


def hash_file(path: Path) -> str:
    """xxh3-128 of a file, read in pieces of 8 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(8 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of all files below `folder` but the manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "xxh3": hash_file(p)} for p in files}


def read_manifest(folder: Path, verify: bool = True) -> Manifest:
    """Read a checkpoint's manifest; with `verify` every file's size and hash is compared.

    Raises CheckpointError naming the first missing, truncated or altered file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint of pargo_ds: {MANIFEST} is missing")
    try:
        raw = json.loads(path.read_text())
        version = raw["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format version {version}, this release reads {FORMAT_VERSION}")
        manifest = Manifest(**raw)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    for name, facts in manifest.files.items() if verify else ():
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise CheckpointError(f"{path}: file name {name!r} leaves the checkpoint's folder")
        if not file.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if file.stat().st_size != facts["bytes"]:
            raise CheckpointError(f"{folder}: {name} has {file.stat().st_size} bytes, expected {facts['bytes']}")
        if hash_file(file) != facts["xxh3"]:
            raise CheckpointError(f"{folder}: {name} was altered (its hash differs from the manifest)")
    return manifest


def newest(checkpoints: Path) -> Path | None:
    """Folder that `latest` names, or None when there is no checkpoint."""
    pointer = checkpoints / LATEST
    if not pointer.is_file():
        return None
    folder = checkpoints / pointer.read_text().strip()
    if folder.parent.resolve() != checkpoints.resolve() or not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name!r}, which is not a checkpoint in {checkpoints}")
    return folder


def point_latest(checkpoints: Path, folder: Path) -> None:
    """Move `latest` to `folder` in one rename."""
    aside = checkpoints / (LATEST + ".aside")
    aside.write_text(folder.name + "\n")
    aside.replace(checkpoints / LATEST)
