"""Read rows of cells from CSV and TSV files, plain or gzipped, and notice rows that a parser would
swallow.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pargo_ds.data.sources.json_files import BROKEN_GZIP, MAX_LINE, open_bytes
from pargo_ds.data.sources.rejects import Reject
from pargo_ds.errors import SourceError

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
Row = tuple[int, "list[str] | Reject"]
"""Number of the row's first line, and its cells or the reason why it cannot be read."""


class DelimitedRows:
    """The rows of a file without its empty lines. `tell` returns the number of bytes of text that
    were read.

    Args:
        quoted: False: each line is a row, and quotes are ordinary characters. True: cells may be in
            double quotes and contain line breaks (RFC 4180). After a fault only the faulty line is
            a reject, and reading continues with the line after it.
        looks_like_row: whether cells look like a row of this table. It is called for the lines
            within a quoted cell, because a misplaced quote may have swallowed rows.
    """

    def __init__(
        self,
        path: str,
        delimiter: str,
        quoted: bool,
        looks_like_row: Callable[[list[str]], bool] = lambda cells: False,
    ) -> None:
        self.path, self.delimiter, self.quoted, self.looks_like_row = (
            path,
            delimiter,
            quoted,
            looks_like_row,
        )
        self.bytes = 0
        self._line = 0
        self._waiting: deque[str | None] = deque()
        """Lines that must be read a second time."""
        self._taken: list[str | None] = []
        """Lines of the current row."""

    def tell(self) -> int:
        """Return how many bytes of the file were read."""
        return self.bytes

    def __iter__(self) -> Iterator[Row]:
        csv.field_size_limit(MAX_LINE)
        with open_bytes(self.path) as file:
            try:
                if self.quoted:
                    yield from self._quoted_rows(file)
                else:
                    yield from self._plain_rows(file)
            except BROKEN_GZIP as error:
                raise SourceError(
                    f"{self.path}: not readable as gzip after line {self._line} ({error}); the file was cut"
                ) from error

    def _plain_rows(self, file: BinaryIO) -> Iterator[Row]:
        for line in self._lines(file):
            self._line += 1
            if line is None:
                yield self._line, _too_long()
            elif line.strip("\r\n"):
                yield self._line, line.rstrip("\r\n").split(self.delimiter)

    def _quoted_rows(self, file: BinaryIO) -> Iterator[Row]:
        lines = self._recorded(self._lines(file))
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            self._taken.clear()
            try:
                cells: list[str] | Reject = self._not_swallowing(next(reader))
            except StopIteration:
                return
            except csv.Error as error:
                cells = Reject(
                    "does not fit",
                    f"the row cannot be read ({error}): quotes inside a cell are doubled",
                )
            except _LongLine:
                cells = _too_long()
            first = self._line + 1
            if isinstance(cells, Reject):
                self._waiting.extendleft(reversed(self._taken[1:]))
                del self._taken[1:]
                reader = csv.reader(
                    self._recorded(self._lines(file)), delimiter=self.delimiter, strict=True
                )
            self._line += len(self._taken)
            if cells:
                yield first, cells

    def _not_swallowing(self, cells: list[str]) -> list[str] | Reject:
        for number, line in enumerate(self._taken[1:], self._line + 2):
            inner: list[str] = []
            if line:
                inner = next(csv.reader([line], delimiter=self.delimiter), [])
            if len(inner) == len(cells) and self.looks_like_row(inner):
                return Reject(
                    "does not fit",
                    f"a quote that is opened here swallows line {number}, which is a row itself",
                )
        return cells

    def _recorded(self, lines: Iterator[str | None]) -> Iterator[str]:
        for line in lines:
            self._taken.append(line)
            if line is None:
                raise _LongLine
            yield line

    def _lines(self, file: BinaryIO) -> Iterator[str | None]:
        """Yield the lines with their ends; None for a line that is too long. Bytes that are not
        UTF-8 become surrogates.
        """
        while True:
            if self._waiting:
                yield self._waiting.popleft()
                continue
            line = file.readline(MAX_LINE)
            if not line:
                return
            if self.bytes == 0:
                if line.startswith(UTF_16):
                    raise SourceError(f"{self.path} is UTF-16 text; save it as UTF-8")
                self.bytes, line = len(line), line.removeprefix(b"\xef\xbb\xbf")
            else:
                self.bytes += len(line)
            if len(line) >= MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield None
                continue
            yield line.decode("utf-8", "surrogateescape")


class _LongLine(Exception):
    """A line is too long to be held in memory."""


def _too_long() -> Reject:
    return Reject("too large", f"the line has more than {MAX_LINE:,} bytes")
