"""Rows and images of benchmark files: JSON, JSON lines, CSV, TSV with base64 images, Parquet.

Nothing is skipped: a file, a column or an image that is missing is a SourceError with its place.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pargo_ds.data.sources.parquet import require_pyarrow
from pargo_ds.errors import SourceError, listed
from pargo_ds.evaluation.benchmark import ImageRef

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
LONGEST_CELL = 1 << 30
REFERENCE = 64
"""A cell `image` of at most so many characters names another row's image (VLMEvalKit's rule)."""
NOTHING = ("", "nan", "none")
MISSING = -1
"""The size of an image whose file is not there."""


@dataclass(frozen=True)
class Row:
    """One row of a table or one object of a JSON file."""

    where: str
    cells: Mapping[str, Any]
    images: Mapping[str, ImageRef] = field(default_factory=dict)

    def text(self, column: str) -> str:
        """Return the cell as text. Raises SourceError when it is missing or empty."""
        text = self.get(column)
        if not text:
            have = ", ".join(self.cells) or "nothing"
            raise SourceError(f"{self.where} has no '{column}'; it has {have}")
        return text

    def get(self, column: str) -> str:
        """Return the cell as text, "" where it is missing or empty, as pandas writes that, too."""
        # A missing cell is None, whose text is one of NOTHING.
        text = str(self.cells.get(column)).strip()
        if text.lower() in NOTHING:
            return ""
        return text

    def image(self, column: str = "image") -> ImageRef:
        """Raises SourceError when the row has no such image."""
        if column not in self.images:
            raise SourceError(f"{self.where} has no image in the column '{column}'")
        return self.images[column]

    def lettered(self) -> tuple[str, ...]:
        """Return the options in the columns A, B, C, ... up to the first that is empty."""
        found = []
        for letter in "ABCDEFGHI":
            if not self.get(letter):
                break
            found.append(self.get(letter))
        return tuple(found)


def read_json(path: Path) -> Any:
    """Read a whole JSON file. Raises SourceError when it is missing or no JSON."""
    if not path.is_file():
        raise SourceError(f"{path} is missing; see tools/evaluate.py --list for what is needed")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise SourceError(f"{path} is no JSON ({error}); copy it anew") from error


def read_json_lines(path: Path) -> list[Row]:
    """Read the rows of a JSON lines file, or of a JSON list."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        entries = enumerate(read_json(path), start=1)
        return [Row(f"{path}, entry {number}", entry) for number, entry in entries]
    rows = []
    # Not splitlines, which would also cut at U+2028 within a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row(f"{path}, line {number}", json.loads(line)))
        except ValueError as error:
            raise SourceError(f"{path}, line {number} is no JSON ({error})") from error
    return rows


def read_csv(path: Path) -> list[Row]:
    """Read the rows of a comma-separated file with a header."""
    if not path.is_file():
        raise SourceError(f"{path} is missing; see tools/evaluate.py --list for what is needed")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Row(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def read_tsv(path: Path) -> list[Row]:
    """Read the rows of a tab-separated file with an `image` column in base64, as VLMEvalKit and
    MMBench have them.

    A short cell is the index of another row whose image this is. Images stay in the file.
    """
    entries: list[dict[str, str]] = []
    places: dict[str, tuple[int, str, int]] = {}
    for offset, cells in _tsv_entries(path):
        data = cells.get("image", "")
        if len(data) > REFERENCE:
            digest = hashlib.blake2b(data.encode(), digest_size=12).hexdigest()
            places[cells.get("index", "")] = offset, digest, len(data)
            cells["image"] = ""  # its place is enough
        entries.append(cells)
    rows = []
    for number, cells in enumerate(entries, start=1):
        where = f"{path}, row {number}"
        said = cells.pop("image", "")
        target = said or cells.get("index", "")
        images = {}
        if target in places:
            offset, digest, size = places[target]
            images["image"] = ImageRef(digest, size, partial(_read_tsv_image, path, offset))
        elif said:
            raise SourceError(f"{where} shows the image of row '{said}', which is not in the file")
        rows.append(Row(where, cells, images))
    return rows


def _tsv_entries(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, str]]]:
    """(byte offset, cells) of the rows from `start` on; quoted cells may hold line breaks."""
    csv.field_size_limit(LONGEST_CELL)
    with path.open("rb") as file:
        header = next(csv.reader([file.readline().decode("utf-8-sig")], delimiter="\t"))
        file.seek(max(start, file.tell()))
        reader = csv.reader(_decoded(file, path), delimiter="\t")
        while True:
            offset = file.tell()
            row = next(reader, None)
            if row is None:
                return
            if row:
                yield offset, dict(zip(header, row, strict=False))


def _decoded(file: Any, path: Path) -> Iterator[str]:
    # `for line in file` would read ahead, and tell() would not be the row's place.
    while line := file.readline():
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"{path} is not UTF-8 before byte {file.tell():,}") from error


def _read_tsv_image(path: Path, offset: int) -> bytes:
    _, cells = next(_tsv_entries(path, offset))
    return decoded_base64(cells["image"], f"{path}, at byte {offset:,}")


def decoded_base64(text: str, where: str) -> bytes:
    """Raises SourceError when it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise SourceError(f"{where}: the image is no base64 ({error}); copy the file") from error


def read_parquet(paths: Sequence[Path]) -> list[Row]:
    """Read the rows of Parquet files as the Hugging Face hub has them: images are {"bytes",
    "path"}.
    """
    pyarrow = require_pyarrow()
    rows = []
    for path in paths:
        file = pyarrow.parquet.ParquetFile(path)
        for group in range(file.num_row_groups):
            for place, cells in enumerate(file.read_row_group(group).to_pylist()):
                where = f"{path}, row group {group}, row {place + 1}"
                rows.append(_parquet_row(path, group, place, cells, where))
    return rows


def _parquet_row(path: Path, group: int, place: int, cells: dict[str, Any], where: str) -> Row:
    images = {}
    for column, value in cells.items():
        data = _bytes_in(value)
        if isinstance(data, bytes):
            digest = hashlib.blake2b(data, digest_size=12).hexdigest()
            read = partial(_read_parquet_image, str(path), group, place, column)
            images[column] = ImageRef(digest, len(data), read)
    plain = {column: value for column, value in cells.items() if column not in images}
    return Row(where, plain, images)


def _read_parquet_image(path: str, group: int, place: int, column: str) -> bytes:
    return _bytes_in(_parquet_column(path, group, column)[place])


def _bytes_in(cell: Any) -> Any:
    """What a cell holds; of an image in the hub's form {"bytes", "path"}, its bytes."""
    if isinstance(cell, dict):
        return cell.get("bytes")
    return cell


@lru_cache(maxsize=4)
def _parquet_column(path: str, group: int, column: str) -> list[Any]:
    """One column of one row group; neighbours are asked for one after another."""
    file = require_pyarrow().parquet.ParquetFile(path)
    return file.read_row_group(group, columns=[column]).column(column).to_pylist()


def read_rows(source: Path) -> list[Row]:
    """Read the rows of one file (.tsv, .csv, .json, .jsonl, .parquet), or of all Parquet files or
    the one TSV of a folder.

    Raises SourceError when there is nothing to read.
    """
    if source.is_dir():
        parquet = sorted(source.rglob("*.parquet"))
        tables = sorted(source.glob("*.tsv"))
        if parquet:
            return read_parquet(parquet)
        if len(tables) != 1:
            raise SourceError(
                f"{source} holds {len(tables)} .tsv and no .parquet files; expected Parquet files, "
                "or one .tsv (name it instead of the folder)"
            )
        return read_tsv(tables[0])
    if not source.is_file():
        raise SourceError(f"{source} does not exist")
    readers = {".tsv": read_tsv, ".csv": read_csv, ".json": read_json_lines}
    readers |= {".jsonl": read_json_lines, ".parquet": lambda path: read_parquet([path])}
    if source.suffix not in readers:
        raise SourceError(f"{source}: expected one of {', '.join(readers)}")
    return readers[source.suffix](source)


def is_table(source: Path) -> bool:
    """Whether the source is a TSV or Parquet table rather than the official folder."""
    if source.is_dir():
        return bool([*source.rglob("*.parquet"), *source.glob("*.tsv")])
    return source.suffix in (".tsv", ".parquet")


def image_file(path: Path, source: Path) -> ImageRef:
    """Return a reference to an image file, named by its place in `source`, so that a folder may be
    moved.

    `check_images` says whether the files are all there.
    """
    size = MISSING
    if path.is_file():
        size = path.stat().st_size
    return ImageRef(path.relative_to(source).as_posix(), size, path.read_bytes)


def check_images(images: Iterable[ImageRef], where: Path) -> None:
    """Raises SourceError naming the images that are missing: nothing is skipped in silence."""
    missing = sorted({image.name for image in images if image.size == MISSING})
    if missing:
        shown = listed(missing, 3)
        raise SourceError(f"{where}: {len(missing)} images are missing: {shown}; copy them there")


def one_folder(source: Path, *names: str) -> Path:
    """Return the first of the folders that exists in `source`. Raises SourceError when there is
    none.
    """
    for name in names:
        if (source / name).is_dir():
            return source / name
    raise SourceError(f"{source} has none of the folders {', '.join(names)}")


def one_file(source: Path, *patterns: str) -> Path:
    """Return `source` itself when it is a file, else the one file in it that fits the first pattern
    that fits any.

    Raises SourceError when there is none, or more than one.
    """
    if source.is_file():
        return source
    for pattern in patterns:
        found = sorted(source.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise SourceError(f"{source} has several files {pattern}: {names}; name the one meant")
        if found:
            return found[0]
    raise SourceError(f"{source} has no file {' or '.join(patterns)}")
