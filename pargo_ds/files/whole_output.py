"""The output folder of a converter: it is whole or absent, and never replaces a folder by accident.

The folder is written under the name `.writing_NAME` and renamed at the end. A conversion that is
killed leaves `.writing_NAME` behind; the next conversion to the same place removes it. A conversion
that is killed while it replaces an older folder leaves that folder as `.replaced_NAME`; the next
conversion renames it back to NAME.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pargo_ds.errors import CheckpointError

WRITING = ".writing_"
REPLACED = ".replaced_"
SPARE = 64 << 20
"""Bytes that are needed besides the weights, for configuration, tokenizer and metadata."""


@contextmanager
def whole_output(
    out: Path, *, force: bool, needed: int = 0, sources: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yield an empty folder to write into. When the block ends, the folder is renamed to `out`;
    after an error it is removed.

    Args:
        force: replace an existing `out` when the new folder is whole.
        needed: number of bytes that will be written, if it is known.
        sources: folders and files that are read; replacing `out` must not destroy one of them.

    Raises:
        CheckpointError: `out` exists and `force` is false, replacing it would destroy a source, or
            the disk is too full.
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
    """Write the system's buffers of a file to the disk, so that the file is whole even after a
    power failure.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_free_to_write(out: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Raise CheckpointError when `out` must not be written.

    whole_output calls this; converters call it first, too, before work that takes long.
    """
    if not out.exists():
        return
    if not force:
        raise CheckpointError(f"{out} exists; choose another folder or pass --force to replace it")
    if not out.is_dir():
        raise CheckpointError(f"{out} is a file; --force replaces only folders")
    for source in [*sources, Path.cwd()]:
        if source.resolve().is_relative_to(out.resolve()):
            raise CheckpointError(
                f"{out} holds {source}, which replacing it would destroy; choose another folder"
            )


def check_space(folder: Path, needed: int) -> None:
    """Raise CheckpointError when the file system of `folder` has less than `needed` + SPARE bytes
    free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise CheckpointError(
            f"{folder.parent} has {free / 1e9:.2f} GB free, the conversion writes {needed / 1e9:.2f} GB and needs "
            f"{SPARE / 1e9:.2f} GB to spare; make room or choose another disk"
        )
