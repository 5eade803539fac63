"""Write and check SHA256SUMS, the list of the hashes of an exported folder.

`sha256sum --check SHA256SUMS` reads the list, too. It has all files but README.md (people edit
model cards), hidden files (hubs add some) and the list itself. The Hugging Face Hub shows the
SHA-256 of each weight file, so people can compare it with the list.
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

from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_file import write_whole

HASHES = "SHA256SUMS"
UNLISTED = (HASHES, "README.md", "__pycache__")
LOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)
"""Weight files that from_pretrained loads if they exist, whether the list names them or not."""
POINTER = b"version https://git-lfs"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
PIECE = 4 << 20
THREADS = min(8, os.cpu_count() or 1)


def write_hashes(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the list of all files of `folder` as they are now; it replaces an older list.

    `known` holds the SHA-256 of files that were hashed while they were written; these files are not
    read again.

    Raises CheckpointError when a file cannot be read, or is a pointer of git-lfs.
    """
    names = listable_files(folder)
    refuse_pointers(folder, names)
    known = known or {}
    found = {**hash_files(folder, [name for name in names if name not in known]), **known}
    lines = (f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    write_whole(folder / HASHES, "".join(lines))


def check_hashes(folder: Path, share: int = 0, shares: int = 1, *, weights: bool = True) -> bool:
    """Compare the files of `folder` with its list; return False if there is no list.

    Args:
        share, shares: check every `shares`-th file from number `share` on, so that ranks divide the
            work.
        weights: whether to check the weight files; without them the check takes milliseconds.

    Raises:
        CheckpointError: a file is missing, altered or a pointer of git-lfs, or a weight file is not
            listed (one message names all of them); or the list itself is damaged.
    """
    present, listed = listable_files(folder), read_hashes(folder)
    wanted = present if listed is None else listed
    chosen = [name for name in sorted(wanted) if weights or not is_loaded(name)]
    names = chosen[share::shares]
    there = [name for name in names if (folder / name).is_file()]
    refuse_pointers(folder, there)
    if listed is None:
        return False
    unlisted: list[str] = []
    if share == 0 and weights:
        unlisted = [name for name in present if name not in listed and is_loaded(name)]
    found = hash_files(folder, there, shown=share == 0 and weights)
    faults = {
        "altered": [name for name, digest in found.items() if digest != listed[name]],
        "missing": [name for name in names if name not in found],
        "not listed": unlisted,
    }
    if any(faults.values()):
        said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(
            f"{folder} is not as it was exported, says its {HASHES}: {said}. Copy or download it again; if the change "
            f"was meant, accept it with tools/convert_checkpoint.py rehash {shlex.quote(str(folder))}"
        )
    return True


def read_hashes(folder: Path) -> dict[str, str] | None:
    """Return the hash of each listed file, in hexadecimal; None if the folder has no list.

    Raises CheckpointError when the list is damaged or names a file outside the folder.
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
        if match is None or not _stays_inside(PurePosixPath(match[2])):
            raise CheckpointError(
                f"{path} is damaged: line {number} is not a hash and a file of the folder: {line!r}"
            )
        listed[str(PurePosixPath(match[2]))] = match[1]
    listed.pop(HASHES, None)  # a list made by hand may name itself
    return listed


def listable_files(folder: Path) -> list[str]:
    """Return the files that the list has to name: sorted paths relative to `folder`."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(name.as_posix() for name in names if not any(map(_is_left_out, name.parts)))


def _is_left_out(part: str) -> bool:
    """Whether a file or folder of this name is not listed."""
    return part in UNLISTED or part[0] == "."


def _stays_inside(name: PurePosixPath) -> bool:
    return not name.is_absolute() and ".." not in name.parts


def is_loaded(name: str) -> bool:
    """Whether `name` is that of a weight file or of an index of weight files."""
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in LOADED)


def refuse_pointers(folder: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError naming the files that are only pointers of git-lfs."""
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
    """Return the SHA-256 of each file. Threads hash several files at a time (hashlib releases the
    interpreter's lock); `shown` says whether a terminal shows a bar.
    """
    names = list(names)
    total = sum((folder / name).stat().st_size for name in names)
    bar = tqdm(
        total=total, unit="B", unit_scale=True, desc=f"hashing {folder.name}", leave=False,
        disable=None if shown else True,
    )  # fmt: skip
    with bar, ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(lambda name: _hash(folder / name, bar.update), names)
        return dict(zip(names, hashes, strict=True))


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
