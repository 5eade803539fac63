"""A converter's output folder is whole or absent: written aside, renamed at the end, never over something by accident.

A conversion that was killed leaves `.writing_NAME` behind, which the next one to the same place removes. One killed in
the middle of replacing an older folder leaves that as `.replaced_NAME`, and the next one gives it its name back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pargo_ds.checkpoint.manifest import CheckpointError

WRITING = ".writing_"
REPLACED = ".replaced_"
SPARE = 64 << 20
"""Bytes that stay free besides the weights: configuration, tokenizer, metadata."""


@contextmanager
def whole_output(out: Path, *, force: bool, needed: int = 0, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder to write into; it gets the name `out` when the block ends without an error, else it goes.

    Args:
        force: replace an existing `out`, once the new one is whole.
        needed: bytes that will be written, where that is known already.
        sources: what is read; `out` may neither be one of them nor lie around or within one that is replaced.

    Raises:
        CheckpointError: `out` exists (without force), would destroy its source, or the disk is too full.
    """
    out = out.absolute()
    replaced = out.with_name(REPLACED + out.name)
    if replaced.exists() and not out.exists():
        replaced.rename(out)
    check_free_to_write(out, force=force, sources=sources)
    aside = out.with_name(WRITING + out.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        check_space(aside, needed)
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                flush(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    aside.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def flush(path: Path) -> None:
    """One file down to the disk, so that a folder with its final name is whole even after a power failure."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_free_to_write(out: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """CheckpointError when `out` must not be written; called before long work as well as by whole_output."""
    if not out.exists():
        return
    if not force:
        raise CheckpointError(f"{out} exists; choose another folder or pass --force to replace it")
    if not out.is_dir():
        raise CheckpointError(f"{out} is a file; --force replaces only folders")
    for source in [*sources, Path.cwd()]:
        if source.resolve().is_relative_to(out.resolve()):
            raise CheckpointError(f"{out} holds {source}, which replacing it would destroy; choose another folder")


def check_space(folder: Path, needed: int) -> None:
    """CheckpointError when the file system of `folder` has less than `needed` bytes free, and some to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise CheckpointError(
            f"{folder.parent} has {free / 1e9:.2f} GB free, the conversion writes {needed / 1e9:.2f} GB and needs "
            f"{SPARE / 1e9:.2f} GB to spare; make room or choose another disk"
        )
