"""The manifest of a checkpoint: its contents, and hashes that prove that it is whole.

A checkpoint folder is written under a temporary name and renamed, so a folder `step_NNNNNNNN`
always has a manifest. The file `latest` beside the folders names the newest one and is updated
last.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_file import write_whole

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
LATEST = "latest"
WRITING, REPLACED, REMOVED, DAMAGED = ".writing_", ".replaced_", ".removed_", "damaged_"
"""What the name of a folder begins with while it is written, replaced or removed, and when it is
damaged.
"""
PACKAGES = ("torch", "deepspeed", "transformers", "mosaicml-streaming", "peft", "timm")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of manifest.json."""

    format_version: int
    step: int
    world_size: int
    """Number of ranks that wrote the checkpoint; any number of ranks can resume from it."""
    zero_stage: int
    model_fingerprint: str
    """Hash of the model's configuration and of the set of trained weights; a run refuses a
    checkpoint of another model.
    """
    data_state: dict[str, Any]
    """Position in the data plan after this step."""
    config: dict[str, Any]
    """The resolved run file."""
    model_config: dict[str, Any]
    """The configuration of the whole model, as in a config.json."""
    frozen_sources: dict[str, Any]
    """The sources of the weights that are not in the checkpoint."""
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]
    """Size and hash of each file by its name in the checkpoint: {"bytes": ..., "xxh3": ...}."""
    parameters: dict[str, list[int]]
    """Names of the trained parameters, with their whole shapes."""
    optimizer_step: int
    """Number of steps that the optimizer has counted."""
    frozen: dict[str, str]
    """Hashes of the weights that are not in the checkpoint, see frozen.py."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of the meters since the run began."""
    wandb_run: str | None = None

    def write(self, folder: Path) -> None:
        """Write manifest.json and flush it to the disk."""
        body = asdict(self)
        with open(folder / MANIFEST, "w") as file:
            json.dump(body | {"hash": hash_of(body)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def versions() -> dict[str, str]:
    """Return the versions of the packages on which the results of a run depend."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimizer steps."""
    return checkpoints / f"step_{step:08d}"


def hash_file(path: Path) -> str:
    """Return the xxh3-128 hash of a file, which is read in pieces of 1 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size and the hash of one file in the form of a manifest."""
    return {"bytes": path.stat().st_size, "xxh3": hash_file(path)}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint; the other files are not read.

    Raises CheckpointError when it is missing, damaged, or has a format version that this release
    does not read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint of pargo_ds: {MANIFEST} is missing")
    try:
        raw = json.loads(path.read_text())
        version = raw["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format version {version}, this release reads {FORMAT_VERSION}"
            )
        written = raw.pop("hash", None)
        manifest = Manifest(**raw)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if written != hash_of(raw):
        raise CheckpointError(f"{path} was altered (its own hash does not fit what it says)")
    return manifest


def hash_of(body: dict[str, Any]) -> str:
    """Return the hash of a manifest; `body` does not contain the hash itself."""
    return xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()


def verify_files(folder: Path, manifest: Manifest, share: int = 0, shares: int = 1) -> None:
    """Compare sizes and hashes of every `shares`-th file with the manifest, so that ranks can
    divide the work.

    Raises CheckpointError naming the first missing, truncated or altered file.
    """
    compare_files(
        folder, {name: manifest.files[name] for name in sorted(manifest.files)[share::shares]}
    )


def compare_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare the named files in `folder` with their sizes and hashes from describe_file.

    Raises CheckpointError.
    """
    for name, facts in sorted(files.items()):
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{folder}: the manifest's file name {name!r} leaves the checkpoint's folder"
            )
        if not file.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if file.stat().st_size != facts["bytes"]:
            raise CheckpointError(
                f"{folder}: {name} has {file.stat().st_size} bytes, expected {facts['bytes']}"
            )
        if hash_file(file) != facts["xxh3"]:
            raise CheckpointError(
                f"{folder}: {name} was altered (its hash differs from the manifest)"
            )


def steps_in(checkpoints: Path) -> list[Path]:
    """Return the folders of all checkpoints, the oldest first."""
    numbered = [path for path in checkpoints.glob("step_*") if path.name[5:].isdigit()]
    return sorted(path for path in numbered if path.is_dir())


def newest(checkpoints: Path) -> Path | None:
    """Return the folder that `latest` names, or None if there is no file `latest`.

    Raises CheckpointError when `latest` names no checkpoint.
    """
    pointer = checkpoints / LATEST
    if not pointer.is_file():
        return None
    folder = _named_by(checkpoints)
    if folder is None:
        raise CheckpointError(
            f"{pointer} says {pointer.read_bytes()[:40]!r}, which is no checkpoint in {checkpoints}; write the name of "
            f"one there (found: {', '.join(path.name for path in steps_in(checkpoints)) or 'none'})"
        )
    return folder


def _named_by(checkpoints: Path) -> Path | None:
    """Return the checkpoint that `latest` names, or None if that checkpoint does not exist
    (`latest` may be damaged like any file).
    """
    word = (checkpoints / LATEST).read_bytes().decode(errors="replace").strip()
    return next((folder for folder in steps_in(checkpoints) if folder.name == word), None)


def point_latest(checkpoints: Path, folder: Path) -> None:
    """Let `latest` name `folder`; the file is replaced in one rename."""
    write_whole(checkpoints / LATEST, folder.name + "\n")


def candidates(checkpoints: Path) -> tuple[list[Path], str]:
    """Return the checkpoints from which a run may resume, the best first: the checkpoint that
    `latest` names, then those of earlier steps. The second value is a sentence for the log if
    `latest` does not name the newest checkpoint, else "".

    A checkpoint with a later step than that of `latest` belongs to a run that was set back, or its
    save was cut off just before `latest` was updated.
    """
    folders, pointer = steps_in(checkpoints)[::-1], checkpoints / LATEST
    if not folders or not pointer.is_file():
        return folders, ""
    named = _named_by(checkpoints)
    if named is None:
        return folders, f"{pointer} names no checkpoint that is there; the newest one is taken"
    later = [folder.name for folder in folders[: folders.index(named)]]
    said = ""
    if later:
        said = f"{pointer} names {named.name}; later ones ({', '.join(later)}) stay"
    return folders[len(later) :], said
