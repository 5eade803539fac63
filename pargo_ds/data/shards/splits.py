"""The two splits of a data set: folders of shards beside each other, to train on and held out."""

from __future__ import annotations

from pathlib import Path

TRAIN, VALIDATION = "train", "validation"


def split_folders(shards: Path) -> tuple[Path, Path | None]:
    """Return (held-out shards, training shards or None) of a folder that is either one itself or
    holds both splits.

    Raises ValueError when it is neither.
    """
    if _holds_shards(shards):
        if shards.name == VALIDATION and _holds_shards(shards.parent / TRAIN):
            return shards, shards.parent / TRAIN
        return shards, None
    if not _holds_shards(shards / VALIDATION):
        raise ValueError(
            f"{shards} holds no shards: neither index.json nor {VALIDATION}/index.json is there"
        )
    if _holds_shards(shards / TRAIN):
        return shards / VALIDATION, shards / TRAIN
    return shards / VALIDATION, None


def _holds_shards(folder: Path) -> bool:
    return (folder / "index.json").is_file()
