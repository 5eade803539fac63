"""Tables in CSV, TSV, Parquet and Arrow files. Options say which columns are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.sources import arrow, parquet
from pargo_ds.data.sources.cells import conversation_in, is_missing, texts_of
from pargo_ds.data.sources.columns import check_columns
from pargo_ds.data.sources.conversations import Dialogue, turns_of
from pargo_ds.data.sources.delimited import DelimitedRows
from pargo_ds.data.sources.fetch import FetchLimits, fetch
from pargo_ds.data.sources.images import check_count, check_size, image_bytes, read_item
from pargo_ds.data.sources.json_files import plain_suffix
from pargo_ds.data.sources.keys import MEDIA_FILE, as_list
from pargo_ds.data.sources.rejects import Reject
from pargo_ds.data.sources.source import (
    CHUNK_BYTES,
    Chunk,
    InputLocation,
    Source,
    file_stem,
    text_id,
)
from pargo_ds.errors import SourceError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
QUOTED = (".csv",)
"""Files whose cells may be in quotes; in other files quotes are read only with `tsv_quotes`."""
PARQUET = (".parquet", ".pq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Source):
    """Rows with an image, captions or a conversation, and an id.

    Attributes:
        images_are: what the column of images holds: paths below `image_folder`, bytes (base64 in a
            CSV), or URLs, which require `download`.
        columns: names of the columns, for CSV and TSV files without a header line.
        captions: what is done with several captions in a cell. "first": the first one is used, and
            the others are kept in meta["other_captions"]; "all": each caption gives one sample (ids
            ID, ID-2, ID-3, ...).
        tsv_quotes: read quotes in TSV files as in CSV files.
    """

    image_column: str | None
    images_are: Literal["path", "bytes", "url"] = "path"
    caption_column: str | None = None
    detailed_column: str | None = None
    conversations_column: str | None = None
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    captions: Literal["first", "all"] = "first"
    tsv_quotes: bool = False
    image_folder: str | None = None
    follow_links: bool = False
    download: FetchLimits | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.files:
            if plain_suffix(name) not in (*DELIMITERS, *PARQUET, *arrow.ARROW):
                known = ", ".join((*DELIMITERS, *PARQUET, *arrow.ARROW))
                raise SourceError(
                    f"{name}: unknown kind of table; expected {known} (CSV and TSV also as .gz)"
                )
        if not (self.caption_column or self.detailed_column or self.conversations_column):
            raise ValueError(
                "name a column of texts: --caption-column, --detailed-column or --conversations-column"
            )
        if self.captions == "all" and (
            self.detailed_column or self.conversations_column or not self.caption_column
        ):
            raise ValueError(
                "--captions all makes a sample of each caption; it goes with --caption-column alone"
            )
        if self.images_are == "url" and self.image_column and self.download is None:
            raise ValueError("images by URL are downloaded only when --fetch is given")
        if self.images_are == "path" and self.image_column and self.image_folder is None:
            raise ValueError(
                "images by path need the folder that the paths begin in: --image-folder FOLDER"
            )
        if self.image_folder is not None and not Path(self.image_folder).is_dir():
            raise SourceError(f"--image-folder {self.image_folder} is not a folder")

    @property
    def threads(self) -> int:  # type: ignore[override]  # a number in the base
        """Threads that convert samples at a time: several only where images are downloaded."""
        if self.download is None or self.images_are != "url":
            return 1
        return self.download.threads

    @property
    def wanted(self) -> list[str]:
        """Names of the columns that are read, each once."""
        own = (
            self.image_column,
            self.caption_column,
            self.detailed_column,
            self.conversations_column,
            self.id_column,
        )
        return list(dict.fromkeys(name for name in own if name))

    def weight(self) -> int:
        """Return the bytes of the rows in all files."""
        return sum(map(_bytes, self.files))

    def chunks(self) -> Generator[Chunk, None, None]:
        """Cut each file into chunks of rows, in the way of its kind."""
        for path in self.files:
            kind = plain_suffix(path)
            if kind in PARQUET:
                yield from parquet.chunks(path, self.wanted, self.chunk_inputs)
            elif kind in arrow.ARROW:
                yield from arrow.chunks(path, self.wanted, self.chunk_inputs)
            else:
                yield from self._csv_chunks(path, kind)

    def entries(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        """Yield the rows of a chunk; with `captions` "all", one input for each caption of a row."""
        for where, entry in self._rows(payload):
            if self.captions == "first" or isinstance(entry, Reject):
                yield where, entry
                continue
            for number, text in enumerate(texts_of(entry.get(self.caption_column)) or [None], 1):
                yield {**where, "caption": number}, {**entry, self.caption_column: text}

    def _rows(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        if payload[0] == "parquet":
            yield from parquet.entries(payload, self.wanted)
        elif payload[0] == "arrow":
            yield from arrow.entries(payload, self.wanted)
        else:
            _, path, names, rows = payload
            for number, line, cells in rows:
                yield {"file": path, "row": number, "line": line}, _named(names, cells)

    def _csv_chunks(self, path: str, kind: str) -> Iterator[Chunk]:
        """Cut the rows into chunks. This is done in the parent process, because a line break may be
        inside quotes.
        """
        names = list(self.columns)
        rows_of_file = DelimitedRows(
            path,
            DELIMITERS[kind],
            kind in QUOTED or self.tsv_quotes,
            lambda cells: self._looks_like_row(names, cells),
        )
        reader = iter(rows_of_file)
        if not names:
            line, header = next(reader, (1, []))
            if isinstance(header, Reject):
                raise SourceError(f"{path}, line {line}: {header.reason}")
            names.extend(header)
        check_columns(path, names, self.wanted)
        rows: list[tuple[int, int, Any]] = []
        start = rows_of_file.tell()
        for number, (line, cells) in enumerate(reader, 1):
            rows.append((number, line, cells))
            if len(rows) == self.chunk_inputs or rows_of_file.tell() - start >= CHUNK_BYTES:
                yield Chunk(("csv", path, names, rows), rows_of_file.tell() - start)
                rows, start = [], rows_of_file.tell()
        if rows:
            yield Chunk(("csv", path, names, rows), rows_of_file.tell() - start)

    def _looks_like_row(self, names: list[str], cells: list[str]) -> bool:
        """Whether the cell of the image column holds a path or an address of an image."""
        if self.image_column not in names or self.images_are == "bytes" or len(cells) != len(names):
            return False
        cell = cells[names.index(self.image_column)].strip()
        return cell.startswith(("http://", "https://")) or MEDIA_FILE.search(cell) is not None

    def identify(self, where: InputLocation, entry: Any) -> str:
        """Return the row's own id, or the file's name and the row's number. Raises Reject."""
        value = self._cell(entry, self.id_column)
        own = text_id(value, f"{file_stem(where['file'])}-{where['row']:08d}")
        if where.get("caption", 1) == 1:
            return own
        return f"{own}-{where['caption']}"

    def _cell(self, entry: Any, column: str | None) -> Any:
        """The value of a row in a column; None where it is missing or there is no such column."""
        if not column or is_missing(entry.get(column)):
            return None
        return entry[column]

    def sample(self, entry: Any, sample_id: str) -> Sample:
        """Read the captions, the conversation and the images of a row. Raises Reject."""
        captions: dict[str, Any] = {}
        meta: dict[str, Any] = {}
        for kind, column, others in (
            ("coarse", self.caption_column, "other_captions"),
            ("detailed", self.detailed_column, "other_detailed_captions"),
        ):
            texts = texts_of(self._cell(entry, column))
            if texts:
                captions[kind] = texts[0]
            if len(texts) > 1:
                meta[others] = texts[1:]
        given = self._cell(entry, self.conversations_column)
        if not captions and given is None:
            raise Reject("text empty", "neither caption nor conversation has a text")
        dialogue = Dialogue([], self._images(self._cell(entry, self.image_column)))
        if given is not None:
            dialogue = turns_of(conversation_in(given), dialogue.images)
        if not dialogue.turns and not dialogue.images:
            raise Reject("image missing", f"the column {self.image_column} is empty")
        images = [self._image(item) for item in dialogue.images]
        return Sample(
            id=sample_id,
            images=images,
            turns=dialogue.turns,
            captions=captions,
            meta={**meta, **dialogue.meta},
        )

    def _images(self, value: Any) -> list[Any]:
        """Return the images of a cell, as the cell names them."""
        if value is None:
            return []
        values = as_list(value)
        check_count(len(values))
        return values

    def _image(self, value: Any) -> bytes:
        if self.images_are == "url":
            assert self.download is not None
            return fetch(value, self.download)
        by_path = (
            isinstance(value, dict) and value.get("bytes") is None and self.image_folder is not None
        )
        if self.images_are == "path" or by_path:
            return read_item(value, self.image_folder, self.follow_links)
        data = image_bytes(value)
        check_size("the image", len(data))
        return data


def _bytes(name: str) -> int:
    """Return the bytes of a table's rows, which Parquet files store compressed."""
    if name.lower().endswith(PARQUET):
        return parquet.weight(name)
    return Path(name).stat().st_size


def _named(names: list[str], cells: Any) -> Any:
    if isinstance(cells, Reject):
        return cells
    if len(cells) != len(names):
        return Reject("does not fit", f"the row has {len(cells)} cells; expected {len(names)}")
    if any("\udc80" <= letter <= "\udcff" for letter in chain.from_iterable(cells)):
        return Reject("not UTF-8", "the row is not UTF-8 text")
    return dict(zip(names, cells, strict=True))
