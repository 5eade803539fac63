"""Tables: CSV and TSV read here, Parquet through `parquet.py`; columns are named by options."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pargo_ds.data.schema import Sample
from pargo_ds.data.sources import parquet
from pargo_ds.data.sources.columns import check_columns
from pargo_ds.data.sources.conversations import turns_of
from pargo_ds.data.sources.fetch import FetchLimits, fetch
from pargo_ds.data.sources.json_files import MAX_LINE
from pargo_ds.data.sources.pictures import check_count, check_size, read_file
from pargo_ds.data.sources.rejects import Reject, SourceError, shortened
from pargo_ds.data.sources.source import CHUNK_BYTES, Chunk, Source, Where, text_id

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Source):
    """Rows with a picture (a path below `pictures`, its bytes or its URL), captions or conversations, and an id.

    `columns` names the columns of CSV files without a header line. Bytes in a CSV are base64. URLs need `download`.
    """

    image_column: str | None
    images_are: Literal["path", "bytes", "url"] = "path"
    caption_column: str | None = None
    detailed_column: str | None = None
    conversations_column: str | None = None
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    pictures: str | None = None
    follow_links: bool = False
    download: FetchLimits | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.files:
            if Path(name).suffix.lower() not in (*DELIMITERS, *PARQUET):
                raise SourceError(f"{name}: unknown kind of table; expected {', '.join((*DELIMITERS, *PARQUET))}")
        if not (self.caption_column or self.detailed_column or self.conversations_column):
            raise ValueError("name a column of texts: --caption-column, --detailed-column or --conversations-column")
        if self.images_are == "url" and self.image_column and self.download is None:
            raise ValueError("pictures by URL are downloaded only when --fetch is given")
        if self.images_are == "path" and self.image_column and self.pictures is None:
            raise ValueError("pictures by path need the folder that the paths begin in: --pictures FOLDER")
        if self.pictures is not None and not Path(self.pictures).is_dir():
            raise SourceError(f"--pictures {self.pictures} is not a folder")

    @property
    def threads(self) -> int:  # type: ignore[override]
        return self.download.threads if self.download is not None and self.images_are == "url" else 1

    @property
    def wanted(self) -> list[str]:
        """Names of the columns that are read."""
        own = (self.image_column, self.caption_column, self.detailed_column, self.conversations_column, self.id_column)
        return list(dict.fromkeys(name for name in own if name))

    def weight(self) -> int:
        return sum(
            parquet.weight(name) if name.lower().endswith(PARQUET) else Path(name).stat().st_size for name in self.files
        )

    def chunks(self) -> Iterator[Chunk]:
        for path in self.files:
            if path.lower().endswith(PARQUET):
                yield from parquet.chunks(path, self.wanted, self.chunk_inputs)
            else:
                yield from self._csv_chunks(path)

    def entries(self, payload: Any) -> Iterator[tuple[Where, Any]]:
        if payload[0] == "parquet":
            yield from parquet.entries(payload, self.wanted)
            return
        _, path, names, rows = payload
        for number, line, cells in rows:
            yield {"file": path, "row": number, "line": line}, _named(names, cells)

    def _csv_chunks(self, path: str) -> Iterator[Chunk]:
        """Rows are cut by the parent process, since a line break may stand inside quotes."""
        with open(path, "rb") as file:
            reader = _rows(file, DELIMITERS[Path(path).suffix.lower()])
            names = list(self.columns)
            if not names:
                _, header = next(reader, (0, []))
                if isinstance(header, Reject):
                    raise SourceError(f"{path}, line 1: {header.reason}")
                names = header
            check_columns(path, names, self.wanted)
            rows: list[tuple[int, int, Any]] = []
            start = file.tell()
            for number, (line, cells) in enumerate(reader, 1):
                rows.append((number, line, cells))
                if len(rows) == self.chunk_inputs or file.tell() - start >= CHUNK_BYTES:
                    yield Chunk(("csv", path, names, rows), file.tell() - start)
                    rows, start = [], file.tell()
            if rows:
                yield Chunk(("csv", path, names, rows), file.tell() - start)

    def identify(self, where: Where, entry: Any) -> str:
        value = entry.get(self.id_column) if self.id_column else None
        return text_id(value, f"{Path(where['file']).stem}-{where['row']:08d}")

    def sample(self, entry: Any, sample_id: str) -> Sample:
        captions = {}
        for kind, column in (("coarse", self.caption_column), ("detailed", self.detailed_column)):
            text = entry.get(column) if column else None
            if not is_missing(text):
                captions[kind] = text
        given = entry.get(self.conversations_column) if self.conversations_column else None
        if not captions and is_missing(given):
            raise Reject("text empty", "neither caption nor conversation has a text")
        images = self._images(entry.get(self.image_column)) if self.image_column else []
        turns = [] if is_missing(given) else turns_of(_conversations(given), len(images))
        if not turns and not images:
            raise Reject("picture missing", f"the column {self.image_column} is empty")
        return Sample(id=sample_id, images=images, turns=turns, captions=captions)

    def _images(self, value: Any) -> list[bytes]:
        if is_missing(value):
            return []
        values = value if isinstance(value, list) else [value]
        check_count(len(values))
        return [self._image(one) for one in values]

    def _image(self, value: Any) -> bytes:
        if self.images_are == "path":
            return read_file(self.pictures or "", value, self.follow_links)
        if self.images_are == "url":
            assert self.download is not None
            return fetch(value, self.download)
        data = picture_bytes(value)
        check_size("the picture", len(data))
        return data


def picture_bytes(value: Any) -> bytes:
    """Bytes of a cell: bytes, base64 text, or Hugging Face's {bytes, path}. Raises Reject."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Reject("picture missing", f"the picture is {shortened(value)}; expected bytes or base64")
    text = value.partition(";base64,")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except ValueError as error:
        raise Reject("picture broken", f"the picture is not base64 ({error})") from error


def is_missing(value: Any) -> bool:
    """Nothing, an empty text or list, or a table's NaN."""
    return value is None or value in ("", []) or (isinstance(value, float) and math.isnan(value))


def _conversations(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Reject("not JSON", f"the conversation: {shortened(str(error))}") from error


def _rows(file: Any, delimiter: str) -> Iterator[tuple[int, Any]]:
    """(line number, cells or a Reject) of each row; empty lines are no rows."""
    csv.field_size_limit(MAX_LINE)
    lines = (line.decode("utf-8", "surrogateescape") for line in iter(lambda: file.readline(MAX_LINE), b""))
    reader = csv.reader(_without_mark(lines), delimiter=delimiter)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, Reject("does not fit", f"the row cannot be read ({error})")
            continue
        if cells:
            yield reader.line_num, cells


def _without_mark(lines: Iterator[str]) -> Iterator[str]:
    for first in lines:
        yield first.removeprefix("\ufeff")
        break
    yield from lines


def _named(names: list[str], cells: Any) -> Any:
    if isinstance(cells, Reject):
        return cells
    if len(cells) != len(names):
        return Reject("does not fit", f"the row has {len(cells)} cells; expected {len(names)}")
    if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
        return Reject("not UTF-8", "the row is not UTF-8 text")
    return dict(zip(names, cells, strict=True))
