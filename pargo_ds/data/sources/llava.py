"""LLaVA's conversation files: [{id, image, conversations}] as a JSON array or as JSON lines, with a picture folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pargo_ds.data.schema import Sample
from pargo_ds.data.sources.conversations import turns_of
from pargo_ds.data.sources.json_files import line_chunks, line_entries, load_json
from pargo_ds.data.sources.pictures import check_count, read_file
from pargo_ds.data.sources.rejects import Reject, SourceError, shortened
from pargo_ds.data.sources.source import Chunk, Source, Where, text_id

LINES = (".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llava(Source):
    """Entries with `image` (a path below `pictures`, or a list of them; none: text only) and `conversations`."""

    pictures: str | None = None
    follow_links: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures is not None and not Path(self.pictures).is_dir():
            raise SourceError(f"--pictures {self.pictures} is not a folder")

    def chunks(self) -> Iterator[Chunk]:
        for path in self.files:
            if Path(path).suffix.lower() in LINES:
                yield from line_chunks(path, self.chunk_inputs)
                continue
            entries = load_json(path)
            if not isinstance(entries, list):
                raise SourceError(
                    f"{path}: the JSON holds {shortened(type(entries).__name__)}, expected an array of entries; "
                    "name files with one entry a line .jsonl"
                )
            size = Path(path).stat().st_size
            for start in range(0, len(entries), self.chunk_inputs):
                part = entries[start : start + self.chunk_inputs]
                yield Chunk((path, start, part), size * len(part) // len(entries))

    def entries(self, payload: Any) -> Iterator[tuple[Where, Any]]:
        if len(payload) == 4:
            yield from line_entries(payload)
            return
        path, start, part = payload
        for number, entry in enumerate(part, start + 1):
            yield {"file": path, "entry": number}, entry

    def identify(self, where: Where, entry: Any) -> str:
        if not isinstance(entry, dict):
            raise Reject("does not fit", f"it is {shortened(entry)}; expected an object {{id, image, conversations}}")
        number = where.get("entry", where.get("line"))
        return text_id(entry.get("id"), f"{Path(where['file']).stem}-{number:08d}")

    def sample(self, entry: Any, sample_id: str) -> Sample:
        if entry.get("video"):
            raise Reject("video", "it has a video; only pictures are read")
        names = picture_names(entry.get("image"))
        check_count(len(names))
        turns = turns_of(entry.get("conversations"), len(names))
        if names and self.pictures is None:
            raise Reject("picture missing", f"it names {shortened(names[0])}, but no --pictures folder was given")
        images = [read_file(self.pictures or "", name, self.follow_links) for name in names]
        return Sample(id=sample_id, images=images, turns=turns)


def picture_names(value: Any) -> list[Any]:
    """The `image` of an entry as a list; nothing, an empty text or an empty list: no picture."""
    if value is None or value == "":
        return []
    if isinstance(value, (str, list)):
        return value if isinstance(value, list) else [value]
    raise Reject("picture missing", f"image is {shortened(value)}; expected a path or a list of paths")
