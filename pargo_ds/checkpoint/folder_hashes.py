"""SHA256SUMS of an exported folder: its files are whole, for this package and for `sha256sum --check SHA256SUMS`.

Every file is listed but README.md, hidden ones and the list itself: a card is written by hand, and hubs add hidden
files. SHA-256 is what the Hugging Face Hub shows for a weight file, so the two can be compared by eye.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from pargo_ds.checkpoint.manifest import CheckpointError

HASHES = "SHA256SUMS"
UNLISTED = (HASHES, "README.md", "__pycache__")
LOADED = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
"""Weight files that from_pretrained takes when it finds them, listed or not."""
POINTER = b"version https://git-lfs"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
PIECE = 4 << 20
THREADS = min(8, os.cpu_count() or 1)


def write_hashes(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """List every file of `folder` as it is now; a list that was there is replaced in one rename.

    `known`: SHA-256 of files that were hashed while they were written, which are not read again.

    Raises CheckpointError when a file cannot be read, or is a pointer of git-lfs.
    """
    names = listable_files(folder)
    refuse_pointers(folder, names)
    known = known or {}
    found = hash_files(folder, [name for name in names if name not in known]) | known
    aside = folder / f".{HASHES}"
    aside.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(found.items())))
    aside.replace(folder / HASHES)


def check_hashes(folder: Path, share: int = 0, shares: int = 1, *, weights: bool = True) -> bool:
    """Compare the files with the list; False when there is none, so that nothing could be compared.

    Args:
        share, shares: check every `shares`-th file, so that ranks divide the work.
        weights: also the weight files; without them it takes milliseconds.

    Raises:
        CheckpointError: files that are missing, altered, pointers of git-lfs, or weight files that are not listed (all
            named together); the list itself is damaged.
    """
    present, listed = listable_files(folder), read_hashes(folder)
    wanted = present if listed is None else listed
    names = [name for name in sorted(wanted) if weights or not is_loaded(name)][share::shares]
    there = [name for name in names if (folder / name).is_file()]
    refuse_pointers(folder, there)
    if listed is None:
        return False
    unlisted = [name for name in present if name not in listed and is_loaded(name)]
    found = hash_files(folder, there, shown=share == 0 and weights)
    faults = {
        "altered": [name for name, digest in found.items() if digest != listed[name]],
        "missing": [name for name in names if name not in found],
        "not listed": unlisted if share == 0 and weights else [],
    }
    if any(faults.values()):
        said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(
            f"{folder} is not as it was exported, says its {HASHES}: {said}. Copy or download it again; if the change "
            f"was meant, accept it with tools/convert_checkpoint.py rehash {shlex.quote(str(folder))}"
        )
    return True


def read_hashes(folder: Path) -> dict[str, str] | None:
    """File name -> SHA-256 in hexadecimal; None when the folder has no list.

    Raises CheckpointError when it is damaged or names a file outside of the folder.
    """
    path = folder / HASHES
    if not path.is_file():
        return None
    text = path.read_bytes().decode(errors="replace")
    if text and not text.endswith("\n"):
        raise CheckpointError(f"{path} is damaged: it was cut in its last line")
    listed = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else None
        if match is None or name is None or name.is_absolute() or ".." in name.parts:
            raise CheckpointError(f"{path} is damaged: line {number} is not a hash and a file of the folder: {line!r}")
        listed[str(name)] = match[1]
    listed.pop(HASHES, None)  # a list made by hand may name itself
    return listed


def listable_files(folder: Path) -> list[str]:
    """Names, relative and sorted, of the files that belong into the list."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name.as_posix() for name in names if not any(part in UNLISTED or part[0] == "." for part in name.parts)
    )


def is_loaded(name: str) -> bool:
    """Whether it is a weight file, or an index of weight files."""
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in LOADED)


def refuse_pointers(folder: Path, names: Iterable[str]) -> None:
    """CheckpointError naming the files that git left as pointers instead of their contents."""
    pointers = [name for name in names if _begins_with(folder / name, POINTER)]
    if pointers:
        raise CheckpointError(
            f"{folder}: {', '.join(pointers)} were not downloaded, only git-lfs's pointers to them; run `git lfs pull` "
            "in the folder (or `hf download`)"
        )


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def hash_files(folder: Path, names: Iterable[str], *, shown: bool = True) -> dict[str, str]:
    """SHA-256 of each file, several at a time (hashlib leaves the interpreter free), with a bar on a terminal."""
    names = list(names)
    total = sum((folder / name).stat().st_size for name in names)
    bar = tqdm(
        total=total, unit="B", unit_scale=True, desc=f"hashing {folder.name}", leave=False,
        disable=None if shown else True,
    )  # fmt: skip
    with bar, ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _hash(folder / name, bar.update), names), strict=True))


def _hash(path: Path, advance: Callable[[int], Any]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                advance(len(piece))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()
