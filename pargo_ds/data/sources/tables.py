"""Tables: CSV and TSV, Parquet, Arrow; columns are named by options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pargo_ds.data.schema import Sample
from pargo_ds.data.sources import arrow, parquet
from pargo_ds.data.sources.cells import conversation_in, is_missing, texts_of
from pargo_ds.data.sources.columns import check_columns
from pargo_ds.data.sources.conversations import Dialogue, turns_of
from pargo_ds.data.sources.delimited import DelimitedRows
from pargo_ds.data.sources.fetch import FetchLimits, fetch
from pargo_ds.data.sources.json_files import plain_suffix
from pargo_ds.data.sources.keys import MEDIA_FILE
from pargo_ds.data.sources.pictures import check_count, check_size, picture_bytes, read_item
from pargo_ds.data.sources.rejects import Reject, SourceError
from pargo_ds.data.sources.source import CHUNK_BYTES, Chunk, Source, Where, file_stem, text_id

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
QUOTED = (".csv",)
"""Files whose cells may stand in quotes by themselves; others only when it is asked for."""
PARQUET = (".parquet", ".pq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Source):
    """Rows with a picture (a path below `pictures`, its bytes or its URL), captions or conversations, and an id.

    `columns` names the columns of CSV files without a header line; `tsv_quotes` reads quotes in TSV files as in CSV.
    Bytes in a CSV are base64. URLs need `download`. captions "first": of several captions in a cell the first one, the
    others kept in meta["other_captions"]; "all": one sample a caption (ids ID, ID-2, ID-3, ...).
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
    pictures: str | None = None
    follow_links: bool = False
    download: FetchLimits | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.files:
            if plain_suffix(name) not in (*DELIMITERS, *PARQUET, *arrow.ARROW):
                known = ", ".join((*DELIMITERS, *PARQUET, *arrow.ARROW))
                raise SourceError(f"{name}: unknown kind of table; expected {known} (CSV and TSV also as .gz)")
        if not (self.caption_column or self.detailed_column or self.conversations_column):
            raise ValueError("name a column of texts: --caption-column, --detailed-column or --conversations-column")
        if self.captions == "all" and (self.detailed_column or self.conversations_column or not self.caption_column):
            raise ValueError("--captions all makes a sample of each caption; it goes with --caption-column alone")
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
            kind = plain_suffix(path)
            if kind in PARQUET:
                yield from parquet.chunks(path, self.wanted, self.chunk_inputs)
            elif kind in arrow.ARROW:
                yield from arrow.chunks(path, self.wanted, self.chunk_inputs)
            else:
                yield from self._csv_chunks(path, kind)

    def entries(self, payload: Any) -> Iterator[tuple[Where, Any]]:
        for where, entry in self._rows(payload):
            if self.captions == "first" or isinstance(entry, Reject):
                yield where, entry
                continue
            for number, text in enumerate(texts_of(entry.get(self.caption_column)) or [None], 1):
                yield {**where, "caption": number}, {**entry, self.caption_column: text}

    def _rows(self, payload: Any) -> Iterator[tuple[Where, Any]]:
        if payload[0] == "parquet":
            yield from parquet.entries(payload, self.wanted)
        elif payload[0] == "arrow":
            yield from arrow.entries(payload, self.wanted)
        else:
            _, path, names, rows = payload
            for number, line, cells in rows:
                yield {"file": path, "row": number, "line": line}, _named(names, cells)

    def _csv_chunks(self, path: str, kind: str) -> Iterator[Chunk]:
        """Rows are cut by the parent process, since a line break may stand inside quotes."""
        names = list(self.columns)
        rows_of_file = DelimitedRows(
            path, DELIMITERS[kind], kind in QUOTED or self.tsv_quotes, lambda cells: self._looks_like_row(names, cells)
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
        """Whether the cells of a line have a picture's path or address where the table has its pictures."""
        if self.image_column not in names or self.images_are == "bytes" or len(cells) != len(names):
            return False
        cell = cells[names.index(self.image_column)].strip()
        return cell.startswith(("http://", "https://")) or MEDIA_FILE.search(cell) is not None

    def identify(self, where: Where, entry: Any) -> str:
        value = entry.get(self.id_column) if self.id_column else None
        own = text_id(None if is_missing(value) else value, f"{file_stem(where['file'])}-{where['row']:08d}")
        return own if where.get("caption", 1) == 1 else f"{own}-{where['caption']}"

    def sample(self, entry: Any, sample_id: str) -> Sample:
        captions: dict[str, Any] = {}
        meta: dict[str, Any] = {}
        for kind, column in (("coarse", self.caption_column), ("detailed", self.detailed_column)):
            texts = texts_of(entry.get(column)) if column else []
            if texts:
                captions[kind] = texts[0]
            if len(texts) > 1:
                meta["other_captions" if kind == "coarse" else "other_detailed_captions"] = texts[1:]
        given = entry.get(self.conversations_column) if self.conversations_column else None
        if not captions and is_missing(given):
            raise Reject("text empty", "neither caption nor conversation has a text")
        named = self._images(entry.get(self.image_column)) if self.image_column else []
        dialogue = Dialogue([], named) if is_missing(given) else turns_of(conversation_in(given), named)
        if not dialogue.turns and not dialogue.images:
            raise Reject("picture missing", f"the column {self.image_column} is empty")
        images = [self._image(item) for item in dialogue.images]
        return Sample(
            id=sample_id, images=images, turns=dialogue.turns, captions=captions, meta={**meta, **dialogue.meta}
        )

    def _images(self, value: Any) -> list[Any]:
        """The pictures of a cell as they are named there."""
        if is_missing(value):
            return []
        values = value if isinstance(value, list) else [value]
        check_count(len(values))
        return values

    def _image(self, value: Any) -> bytes:
        if self.images_are == "url":
            assert self.download is not None
            return fetch(value, self.download)
        by_path = isinstance(value, dict) and value.get("bytes") is None and self.pictures is not None
        if self.images_are == "path" or by_path:
            return read_item(value, self.pictures, self.follow_links)
        data = picture_bytes(value)
        check_size("the picture", len(data))
        return data


def _named(names: list[str], cells: Any) -> Any:
    if isinstance(cells, Reject):
        return cells
    if len(cells) != len(names):
        return Reject("does not fit", f"the row has {len(cells)} cells; expected {len(names)}")
    if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
        return Reject("not UTF-8", "the row is not UTF-8 text")
    return dict(zip(names, cells, strict=True))
