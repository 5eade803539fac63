"""Conversation files: LLaVA's [{id, image, conversations}] and its relatives, as a JSON array or as JSON lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pargo_ds.data.schema import Sample
from pargo_ds.data.sources.conversations import dialogue_of
from pargo_ds.data.sources.json_files import holds_lines, line_chunks, line_entries, load_json
from pargo_ds.data.sources.pictures import read_item
from pargo_ds.data.sources.rejects import Reject, SourceError, shortened
from pargo_ds.data.sources.source import Chunk, Source, Where, file_stem, text_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llava(Source):
    """Entries with pictures (paths below `pictures`; none: text only) and a conversation, in any of the formats that
    `conversations.dialogue_of` reads."""

    pictures: str | None = None
    follow_links: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures is not None and not Path(self.pictures).is_dir():
            raise SourceError(f"--pictures {self.pictures} is not a folder")

    def chunks(self) -> Iterator[Chunk]:
        for path in self.files:
            if holds_lines(path):
                yield from line_chunks(path, self.chunk_inputs)
                continue
            entries = load_json(path)
            if not isinstance(entries, list):
                keys = f"; its keys are {shortened(', '.join(entries))}" if isinstance(entries, dict) else ""
                raise SourceError(
                    f"{path}: the JSON holds {type(entries).__name__}, expected an array of entries, or one entry a "
                    f"line{keys}"
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
        return text_id(entry.get("id"), f"{file_stem(where['file'])}-{number:08d}")

    def sample(self, entry: Any, sample_id: str) -> Sample:
        dialogue = dialogue_of(entry)
        images = [read_item(item, self.pictures, self.follow_links) for item in dialogue.images]
        return Sample(id=sample_id, images=images, turns=dialogue.turns, meta=dialogue.meta)
