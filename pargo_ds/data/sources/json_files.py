"""JSON documents and JSON lines, plain or gzipped: whole, or an error that names file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pargo_ds.data.sources.rejects import Reject, SourceError, shortened
from pargo_ds.data.sources.source import CHUNK_BYTES, Chunk, Where

MAX_LINE = 1 << 26
"""Bytes of one line; a longer one is a reject, and is never held in memory."""
MAX_DOCUMENT = 1 << 34
"""Bytes of a JSON document after gunzipping."""
LINES = (".jsonl", ".ndjson")
GZIP = ".gz"
BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


def open_bytes(path: str) -> BinaryIO:
    """A file, or what a gzipped file (.gz) holds, for reading."""
    return gzip.open(path, "rb") if path.lower().endswith(GZIP) else open(path, "rb")  # type: ignore[return-value]


def plain_suffix(path: str) -> str:
    """The ending that says what a file holds, in small letters: that in front of .gz."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(GZIP)).suffix


def holds_lines(path: str) -> bool:
    """Whether a file holds one JSON value a line: by its first line, and by its name where that leaves it open.

    Many files of JSON lines are named .json, and some arrays .jsonl.
    """
    with open_bytes(path) as file:
        first = _first_line(file)
        more = _first_line(file)
    begins = first.lstrip(b"\xef\xbb\xbf \t\r")[:1]
    if plain_suffix(path) in LINES:
        return begins != b"[" or not _is_first_of_array(first)
    if begins != b"{" or not more:
        return False
    try:
        json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _is_first_of_array(line: bytes) -> bool:
    """Whether a line that begins with [ opens an array that later lines close."""
    try:
        json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc.rstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _first_line(file: BinaryIO) -> bytes:
    """The next line that is not blank; b"" at the end of the file."""
    try:
        for line in iter(lambda: file.readline(MAX_LINE), b""):
            if line.strip():
                return line
    except BROKEN_GZIP:
        pass  # told by whoever reads the file in earnest
    return b""


def load_json(path: str, each_once: bool = False) -> Any:
    """The parsed document. Raises SourceError naming file and line, with `each_once` also for a key that stands twice
    in an object anywhere."""
    try:
        with open_bytes(path) as file:
            data = file.read(MAX_DOCUMENT + 1)
    except BROKEN_GZIP as error:
        raise SourceError(f"{path}: not readable as gzip ({error}); the file was cut or is broken") from error
    if len(data) > MAX_DOCUMENT:
        raise SourceError(f"{path} holds more than {MAX_DOCUMENT:,} bytes; save it as JSON lines (.jsonl)")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once if each_once else _unique)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path}, line {line}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); the file was cut or is broken"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not readable as JSON ({shortened(str(error))})") from error


def parsed(text: str) -> Any:
    """The value of a JSON text; an object that gives one name two values becomes a `TwoValues`."""
    return json.loads(text, object_pairs_hook=_unique)


class TwoValues(dict):
    """A JSON object in which the name `twice` has two values; json would keep the last one without a word."""

    twice: str = ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    odd = TwoValues(found)
    odd.twice = next(name for name in names if names.count(name) > 1)
    return odd


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _unique(pairs)
    if isinstance(found, TwoValues):
        raise ValueError(f"the key {found.twice} stands twice in one object; expected each key once")
    return found


def check_each_once(value: Any) -> None:
    """Raise Reject when an object anywhere in a JSON value gives one name two values."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, TwoValues):
            raise Reject("two values", f"it has the key {shortened(one.twice)} twice; expected each key once")
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def line_chunks(path: str, inputs: int) -> Iterator[Chunk]:
    """Cut a file of JSON lines into chunks of at most `inputs` lines.

    Payload: (path, offset, end, first line); of a gzipped file, in which nobody can begin in the middle, (path, the
    lines themselves, None, first line).
    """
    zipped = path.lower().endswith(GZIP)
    held: list[bytes | None] = []
    with open_bytes(path) as file:
        start, first, lines = 0, 1, 0
        try:
            for number, line in enumerate(_lines(file), 1):
                lines += 1
                if zipped:
                    held.append(line)
                if lines == inputs or file.tell() - start >= CHUNK_BYTES:
                    yield _chunk(path, held if zipped else start, file.tell(), first, file.tell() - start)
                    start, first, lines, held = file.tell(), number + 1, 0, []
        except BROKEN_GZIP as error:
            raise SourceError(
                f"{path}, after line {first + lines - 1}: not readable as gzip ({error}); the file was cut or is broken"
            ) from error
        if lines:
            yield _chunk(path, held if zipped else start, file.tell(), first, file.tell() - start)


def _chunk(path: str, start: Any, end: int, first: int, weight: int) -> Chunk:
    return Chunk((path, start, None if isinstance(start, list) else end, first), weight)


def line_entries(payload: tuple[str, Any, int | None, int]) -> Iterator[tuple[Where, Any]]:
    """The parsed lines of one chunk with their line numbers; empty lines are no inputs."""
    path, start, end, first = payload
    if end is None:
        yield from _numbered(path, start, first)
        return
    with open(path, "rb") as file:
        file.seek(start)
        yield from _numbered(path, _lines(file, end), first)


def _numbered(path: str, lines: Any, first: int) -> Iterator[tuple[Where, Any]]:
    for number, line in enumerate(lines, first):
        if line is None or line.strip():
            yield {"file": path, "line": number}, _parsed_line(line)


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


def _parsed_line(line: bytes | None) -> Any:
    if line is None:
        return Reject("too large", f"the line has more than {MAX_LINE:,} bytes")
    try:
        return parsed(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Reject("not UTF-8", f"byte {error.start} of the line is not UTF-8 ({error.reason})")
    except (ValueError, RecursionError) as error:
        return Reject("not JSON", shortened(str(error)))
