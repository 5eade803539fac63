"""JSON documents and JSON lines: whole, or an error that names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pargo_ds.data.sources.rejects import Reject, SourceError, shortened
from pargo_ds.data.sources.source import CHUNK_BYTES, Chunk, Where

MAX_LINE = 1 << 26
"""Bytes of one line; a longer one is a reject, and is never held in memory."""


def load_json(path: str) -> Any:
    """The parsed document. Raises SourceError naming file and line."""
    data = Path(path).read_bytes()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path}, line {line}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); the file was cut or is broken"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not readable as JSON ({shortened(str(error))})") from error


def line_chunks(path: str, inputs: int) -> Iterator[Chunk]:
    """Cut a file of JSON lines into chunks of at most `inputs` lines; payload (path, offset, end, first line)."""
    with open(path, "rb") as file:
        start, first, lines = 0, 1, 0
        for number, _ in enumerate(_lines(file), 1):
            lines += 1
            if lines == inputs or file.tell() - start >= CHUNK_BYTES:
                yield Chunk((path, start, file.tell(), first), file.tell() - start)
                start, first, lines = file.tell(), number + 1, 0
        if lines:
            yield Chunk((path, start, file.tell(), first), file.tell() - start)


def line_entries(payload: tuple[str, int, int, int]) -> Iterator[tuple[Where, Any]]:
    """The parsed lines of one chunk with their line numbers; empty lines are no inputs."""
    path, start, end, first = payload
    with open(path, "rb") as file:
        file.seek(start)
        for number, line in enumerate(_lines(file, end), first):
            if line is None or line.strip():
                yield {"file": path, "line": number}, _parsed(line)


def _lines(file: BinaryIO, end: int | None = None) -> Iterator[bytes | None]:
    """Lines up to the offset `end`; None for one of more than MAX_LINE bytes."""
    while end is None or file.tell() < end:
        line = file.readline(MAX_LINE)
        if not line:
            return
        if len(line) < MAX_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
            pass
        yield None


def _parsed(line: bytes | None) -> Any:
    if line is None:
        return Reject("too large", f"the line has more than {MAX_LINE:,} bytes")
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Reject("not UTF-8", f"byte {error.start} of the line is not UTF-8 ({error.reason})")
    except (ValueError, RecursionError) as error:
        return Reject("not JSON", shortened(str(error)))
