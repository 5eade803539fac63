"""Read JSON documents and JSON lines, plain or gzipped. A fault is an error with file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.data.sources.source import CHUNK_BYTES, Chunk, InputLocation
from pargo_ds.errors import SourceError

MAX_LINE = 1 << 26
"""Upper bound of the bytes of one line; a longer line is a reject and is never held in memory."""
MAX_DOCUMENT = 1 << 34
"""Upper bound of the bytes of a JSON document after gunzipping."""
LINES = (".jsonl", ".ndjson")
GZIP = ".gz"
BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


def open_bytes(path: str) -> BinaryIO:
    """Open a file for reading; a gzipped file (.gz) is unpacked on the way."""
    if path.lower().endswith(GZIP):
        return cast("BinaryIO", gzip.open(path, "rb"))
    return open(path, "rb")


def plain_suffix(path: str) -> str:
    """Return the ending that tells the format of a file, in lower case; .gz is not counted."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(GZIP)).suffix


def holds_lines(path: str) -> bool:
    """Whether a file holds one JSON value per line. Its first lines decide, together with its name,
    because many files of JSON lines are named .json, and some arrays .jsonl.
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
    """Return the next line that is not blank, or b"" at the end of the file."""
    try:
        for line in iter(lambda: file.readline(MAX_LINE), b""):
            if line.strip():
                return line
    except BROKEN_GZIP:
        pass  # the code that reads the whole file raises the error
    return b""


def load_json(path: str, each_once: bool = False) -> Any:
    """Return the parsed document.

    Raises SourceError naming file and line; with `each_once` also for an object anywhere in the
    document that has the same key twice.
    """
    try:
        with open_bytes(path) as file:
            data = file.read(MAX_DOCUMENT + 1)
    except BROKEN_GZIP as error:
        raise SourceError(
            f"{path}: not readable as gzip ({error}); the file was cut or is broken"
        ) from error
    if len(data) > MAX_DOCUMENT:
        raise SourceError(
            f"{path} holds more than {MAX_DOCUMENT:,} bytes; save it as JSON lines (.jsonl)"
        )
    hook = _once if each_once else _unique
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path}, line {line}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); the file was cut or is broken"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not readable as JSON ({shortened(str(error))})") from error


def parsed(text: str) -> Any:
    """Return the value of a JSON text. An object that has a key twice becomes a `TwoValues`."""
    return json.loads(text, object_pairs_hook=_unique)


class TwoValues(dict):
    """A JSON object that has the key `twice` twice; Python's json would silently keep the last
    value.
    """

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
        raise ValueError(
            f"the key {found.twice} stands twice in one object; expected each key once"
        )
    return found


def check_each_once(value: Any) -> None:
    """Raise Reject when an object anywhere in a JSON value has a key twice."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, TwoValues):
            raise Reject(
                "two values", f"it has the key {shortened(one.twice)} twice; expected each key once"
            )
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def line_chunks(path: str, inputs: int) -> Iterator[Chunk]:
    """Cut a file of JSON lines into chunks of at most `inputs` lines.

    The payload is (path, offset, end, number of the first line). A gzipped file cannot be read from
    the middle; its payload is (path, the lines themselves, None, number of the first line).
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
                    yield _line_chunk(path, start, file.tell(), first, held)
                    start, first, lines, held = file.tell(), number + 1, 0, []
        except BROKEN_GZIP as error:
            raise SourceError(
                f"{path}, after line {first + lines - 1}: not readable as gzip ({error}); the file was cut or is broken"
            ) from error
        if lines:
            yield _line_chunk(path, start, file.tell(), first, held)


def _line_chunk(path: str, start: int, end: int, first: int, held: list[bytes | None]) -> Chunk:
    """The lines from `start` to `end`; of a gzipped file the lines `held` themselves."""
    if held:
        return Chunk((path, held, None, first), end - start)
    return Chunk((path, start, end, first), end - start)


def line_entries(payload: tuple[str, Any, int | None, int]) -> Iterator[tuple[InputLocation, Any]]:
    """Yield the parsed lines of one chunk with their line numbers; empty lines are skipped."""
    path, start, end, first = payload
    if end is None:
        yield from _numbered(path, start, first)
        return
    with open(path, "rb") as file:
        file.seek(start)
        yield from _numbered(path, _lines(file, end), first)


def _numbered(path: str, lines: Any, first: int) -> Iterator[tuple[InputLocation, Any]]:
    for number, line in enumerate(lines, first):
        if line is None or line.strip():
            yield {"file": path, "line": number}, _parsed_line(line)


def _lines(file: BinaryIO, end: int | None = None) -> Iterator[bytes | None]:
    """Yield the lines up to the offset `end`; None for a line of more than MAX_LINE bytes."""
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
