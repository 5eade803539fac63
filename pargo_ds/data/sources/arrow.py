"""Read Arrow files, and the folders of Arrow files that Hugging Face's `datasets` saves, batch by
batch through pyarrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pargo_ds.data.sources.columns import check_columns
from pargo_ds.data.sources.parquet import require_pyarrow, row_of
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.data.sources.source import Chunk, InputLocation
from pargo_ds.errors import SourceError

ARROW = (".arrow",)


def table_files(names: Sequence[str]) -> tuple[str, ...]:
    """Return the files to read: a folder that `Dataset.save_to_disk` wrote is replaced by its Arrow
    files in their order, and file names are returned unchanged.

    Raises SourceError for any other folder, also for a folder with several splits.
    """
    files: list[str] = []
    for name in names:
        if Path(name).is_dir():
            files += _saved_files(Path(name))
        else:
            files.append(name)
    return tuple(files)


def _saved_files(folder: Path) -> list[str]:
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        shown = ", ".join(str(folder / str(name)) for name in splits)
        raise SourceError(f"{folder} holds several splits; name those that are wanted: {shown}")
    if not (folder / "state.json").is_file():
        raise SourceError(
            f"{folder} is a folder without state.json, so save_to_disk did not write it; name the files to read, "
            f"such as {folder}/*.parquet"
        )
    state = _json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise SourceError(
            f"{folder} selects rows by an index file; write it with flatten_indices().save_to_disk(...)"
        )
    files = []
    for entry in state.get("_data_files", []):
        name = Path(str(entry.get("filename"))).name
        files.append(str(folder / name))
    if not files:
        raise SourceError(f"{folder / 'state.json'} names no data files; save the data set anew")
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not readable as JSON ({shortened(str(error))})") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path} holds {type(found).__name__}; expected an object")
    return found


def _batches(path: str) -> Iterator[Any]:
    """Yield the record batches of an Arrow stream (the format of `datasets`) or Arrow file. They
    are mapped into memory and not checked.
    """
    pyarrow = require_pyarrow()
    source = pyarrow.memory_map(path)
    try:
        reader = pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        file = pyarrow.ipc.open_file(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
        return
    yield from reader


def chunks(path: str, wanted: list[str], inputs: int) -> Iterator[Chunk]:
    """Yield each batch in chunks of at most `inputs` rows. The payload is ("arrow", path, batch,
    first row in the batch, rows, rows of the file before the chunk).
    """
    before = 0
    try:
        for number, batch in enumerate(_batches(path)):
            if number == 0:
                check_columns(path, list(batch.schema.names), wanted)
            for start in range(0, batch.num_rows, inputs):
                rows = min(inputs, batch.num_rows - start)
                yield Chunk(
                    ("arrow", path, number, start, rows, before + start),
                    batch.nbytes * rows // batch.num_rows,
                )
            before += batch.num_rows
    except SourceError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's errors are kinds of both
        raise SourceError(
            f"{path} is broken or no Arrow file ({shortened(str(error))}); copy it anew"
        ) from error


def entries(payload: Any, wanted: list[str]) -> Iterator[tuple[InputLocation, Any]]:
    """Yield the rows of a chunk. If its batch is damaged, each of its rows is a reject."""
    _, path, number, start, rows, before = payload
    batch = next(batch for place, batch in enumerate(_batches(path)) if place == number)
    fault = None
    try:
        batch.select(wanted).validate(full=True)  # a damaged offset would be used as an address
    except ValueError as error:
        fault = Reject("table damaged", f"batch {number} is damaged ({shortened(str(error))})")
    for row in range(rows):
        yield {"file": path, "row": before + row + 1}, fault or row_of(batch, start + row, wanted)
