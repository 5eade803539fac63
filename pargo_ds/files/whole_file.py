"""A file that is whole or absent: it is written beside its name and then renamed.

What a killed process leaves beside the name is overwritten by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def path_aside(path: Path, writer: str = "") -> Iterator[Path]:
    """Yield a path beside `path` to write to. When the block ends, the file is renamed to `path`
    and replaces an older file; after an error it is removed and the older file stays.

    `writer` distinguishes processes that may write the same file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{writer or 'aside'}")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        # Only after an error: later the name beside may belong to another process.
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path, writer: str = "") -> Iterator[TextIO]:
    """Open a UTF-8 text file that appears as `path`, written to the disk, when the block ends; see
    `path_aside`.
    """
    with path_aside(path, writer) as aside, aside.open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: str | bytes, writer: str = "") -> None:
    """Write UTF-8 text or bytes to `path`, whole or not at all; see `path_aside`."""
    data = content.encode() if isinstance(content, str) else content
    with path_aside(path, writer) as aside, aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
