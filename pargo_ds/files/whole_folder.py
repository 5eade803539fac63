"""A folder that is whole or absent: it is written beside its name and then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_aside(folder: Path, writer: str = "", *, first_wins: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder`. When the block ends, it is renamed to `folder`; after
    an error it is removed.

    `folder` must not exist when the block ends, or be empty. With `first_wins` it may: another
    process was faster, and its folder is kept. `writer` distinguishes processes that may make the
    same folder at the same time.
    """
    aside = folder.with_name(f".{folder.name}.{writer or 'unfinished'}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _rename(aside, folder, first_wins)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _rename(aside: Path, folder: Path, first_wins: bool) -> None:
    try:
        aside.rename(folder)
    except OSError as error:
        if not first_wins or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(aside)


@contextmanager
def whole_folder(folder: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which is renamed to `folder` when the block ends.

    With `force` an existing folder is replaced at the end of the block; after an error it is kept.
    The temporary name begins with a dot and ends in the process id. A killed process leaves the
    temporary folder behind, which does no harm.

    Raises:
        ValueError: `folder` exists and `force` is false, or `folder` is a file.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"{folder} is a file; expected a folder to write shards into: choose another name"
        )
    if folder.exists() and not force:
        raise ValueError(
            f"{folder} exists already; choose another folder, or pass force (--force) to replace it"
        )
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    with folder_aside(folder, f"unfinished-{os.getpid()}") as aside:
        yield aside
        if folder.exists():
            folder.rename(replaced)  # a rename cannot replace a folder that is not empty
    shutil.rmtree(replaced, ignore_errors=True)
