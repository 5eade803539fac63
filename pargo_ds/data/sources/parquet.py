"""Read Parquet tables, row group by row group, through pyarrow (the extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pargo_ds.data.sources.columns import check_columns
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.data.sources.source import Chunk, InputLocation
from pargo_ds.errors import SourceError

BATCH = 64


def require_pyarrow() -> ModuleType:
    """Return pyarrow with its readers. Raises SourceError when it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise SourceError(
            "reading Parquet and Arrow needs pyarrow; install it with: pip install pyarrow"
        ) from error
    return pyarrow


def _open(path: str) -> Any:
    pyarrow = require_pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's errors are kinds of both
        raise SourceError(
            f"{path} is broken or no Parquet ({shortened(str(error))}); copy it anew"
        ) from error


def weight(path: str) -> int:
    """Return the number of bytes of all row groups."""
    table = _open(path).metadata
    return sum(table.row_group(number).total_byte_size for number in range(table.num_row_groups))


def chunks(path: str, wanted: list[str], inputs: int) -> Iterator[Chunk]:
    """Yield each row group in chunks of at most `inputs` rows. The payload is ("parquet", path,
    group, first row in the group, rows, rows of the file before the chunk).
    """
    table = _open(path)
    check_columns(path, list(table.schema_arrow.names), wanted)
    before = 0
    for group in range(table.metadata.num_row_groups):
        facts = table.metadata.row_group(group)
        for start in range(0, facts.num_rows, inputs):
            rows = min(inputs, facts.num_rows - start)
            yield Chunk(
                ("parquet", path, group, start, rows, before + start),
                facts.total_byte_size * rows // facts.num_rows,
            )
        before += facts.num_rows


def entries(payload: Any, wanted: list[str]) -> Iterator[tuple[InputLocation, Any]]:
    """Yield the rows of a chunk. Each row that cannot be decoded is a reject."""
    _, path, group, start, rows, before = payload
    read = 0
    try:
        for row in _rows(path, group, start, rows, wanted):
            read += 1
            yield {"file": path, "row": before + read}, row
    except (ValueError, OSError) as error:
        if not Path(path).is_file():
            raise
        reason = f"row group {group} cannot be decoded ({shortened(str(error))})"
        for number in range(read + 1, rows + 1):
            yield {"file": path, "row": before + number}, Reject("table damaged", reason)


def _rows(path: str, group: int, start: int, rows: int, wanted: list[str]) -> Iterator[Any]:
    skipped = given = 0
    table = _open(path)
    for batch in table.iter_batches(BATCH, row_groups=[group], columns=wanted, use_threads=False):
        if skipped + batch.num_rows <= start:
            skipped += batch.num_rows
            continue
        for number in range(start - skipped, batch.num_rows):
            if given == rows:
                return
            given += 1
            yield row_of(batch, number, wanted)
        skipped = start
    if given < rows:
        raise ValueError(f"it ends after {start + given} rows")


def row_of(batch: Any, number: int, wanted: list[str]) -> Any:
    """Return the wanted columns of one row of a record batch by name, or a Reject if a text is not
    UTF-8.
    """
    try:
        return {name: batch.column(name)[number].as_py() for name in wanted}
    except UnicodeDecodeError as error:
        return Reject("not UTF-8", f"the row is not UTF-8 text ({error.reason})")
