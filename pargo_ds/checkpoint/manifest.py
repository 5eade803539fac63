"""The manifest of a checkpoint: what it holds, and hashes that prove it whole.

A checkpoint folder is written aside and renamed, so `step_NNNNNNNN` either has a manifest or does not exist; the file
`latest` beside the folders names the newest one and moves last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""1: DeepSpeed's own files, for the number of ranks and the ZeRO stage that wrote them. 2: fragments."""
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
    """Ranks that wrote it; it resumes on any number."""
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
    parameters: dict[str, list[int]] = field(default_factory=dict)
    """Trained parameters and their whole shapes."""
    optimizer_step: int = 0
    """Steps that the optimizer has counted."""
    frozen: dict[str, str] = field(default_factory=dict)
    """Hashes of the weights that are not in the checkpoint, see frozen.py."""
    frozen_shapes: dict[str, list[int]] = field(default_factory=dict)
    """Their whole shapes; checkpoints from before this was noted lack them."""
    totals: dict[str, float] = field(default_factory=dict)
    """What the meters have added up since the run began."""
    wandb_run: str | None = None

    def write(self, folder: Path) -> None:
        """Write manifest.json, down to the disk."""
        body = asdict(self)
        with open(folder / MANIFEST, "w") as file:
            json.dump(body | {"hash": hash_of(body)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimizer steps."""
    return checkpoints / f"step_{step:08d}"


def hash_file(path: Path) -> str:
    """xxh3-128 of a file, read in pieces of 1 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Size and hash of one file, as they stand in a manifest."""
    return {"bytes": path.stat().st_size, "xxh3": hash_file(path)}


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest; its files are not looked at.

    Raises CheckpointError when it is missing, damaged, or of a format that this release does not read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint of pargo_ds: {MANIFEST} is missing")
    try:
        raw = json.loads(path.read_text())
        version = raw["format_version"]
        if version not in READABLE_VERSIONS:
            raise CheckpointError(
                f"{path}: format version {version}, this release reads up to {READABLE_VERSIONS[-1]}; update pargo_ds"
            )
        written = raw.pop("hash", None)
        manifest = Manifest(**raw)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if version > 1 and written != hash_of(raw):
        raise CheckpointError(f"{path} was altered (its own hash does not fit what it says)")
    return manifest


def hash_of(body: dict[str, Any]) -> str:
    """Of a manifest without its own hash."""
    return xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()


def verify_files(folder: Path, manifest: Manifest, share: int = 0, shares: int = 1) -> None:
    """Compare sizes and hashes of every `shares`-th file with the manifest, so that ranks can divide the work.

    Raises CheckpointError naming the first missing, truncated or altered file.
    """
    compare_files(folder, {name: manifest.files[name] for name in sorted(manifest.files)[share::shares]})


def compare_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare files with what describe_file said of them, by their names in `folder`. Raises CheckpointError."""
    for name, facts in sorted(files.items()):
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}: the manifest's file name {name!r} leaves the checkpoint's folder")
        if not file.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if file.stat().st_size != facts["bytes"]:
            raise CheckpointError(f"{folder}: {name} has {file.stat().st_size} bytes, expected {facts['bytes']}")
        if hash_file(file) != facts["xxh3"]:
            raise CheckpointError(f"{folder}: {name} was altered (its hash differs from the manifest)")


def steps_in(checkpoints: Path) -> list[Path]:
    """Folders of all checkpoints, oldest first."""
    return sorted(path for path in checkpoints.glob("step_*") if path.is_dir() and path.name[5:].isdigit())


def newest(checkpoints: Path) -> Path | None:
    """Folder that `latest` names, or None when there is no checkpoint."""
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
    """The checkpoint that `latest` names; None when it names none that is there (it may be damaged like any file)."""
    word = (checkpoints / LATEST).read_bytes().decode(errors="replace").strip()
    return next((folder for folder in steps_in(checkpoints) if folder.name == word), None)


def point_latest(checkpoints: Path, folder: Path) -> None:
    """Move `latest` to `folder` in one rename."""
    aside = checkpoints / (LATEST + ".aside")
    aside.write_text(folder.name + "\n")
    aside.replace(checkpoints / LATEST)


def candidates(checkpoints: Path) -> tuple[list[Path], str]:
    """Checkpoints to resume from, best first: the one that `latest` names, then those of earlier steps; and a sentence
    where `latest` does not name the newest one ("" where it does).

    Later ones than `latest` belong to a run that somebody took back, or were cut off just before `latest` moved.
    """
    folders, pointer = steps_in(checkpoints)[::-1], checkpoints / LATEST
    named = _named_by(checkpoints) if pointer.is_file() else None
    if named is None:
        said = f"{pointer} names no checkpoint that is there; the newest one is taken" if pointer.is_file() else ""
        return folders, said if folders else ""
    later = [folder.name for folder in folders[: folders.index(named)]]
    return folders[len(later) :], f"{pointer} names {named.name}; later ones ({', '.join(later)}) stay" if later else ""
