"""Conversation files: LLaVA's [{id, image, conversations}] and similar formats, as a JSON array or
as JSON lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.sources.conversations import dialogue_of
from pargo_ds.data.sources.images import read_item
from pargo_ds.data.sources.json_files import holds_lines, line_chunks, line_entries, load_json
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.data.sources.source import Chunk, InputLocation, Source, file_stem, text_id
from pargo_ds.errors import SourceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llava(Source):
    """Entries with a conversation in any format that `conversations.dialogue_of` reads, and with
    images as paths below `image_folder`. Entries without an image are text only.
    """

    image_folder: str | None = None
    follow_links: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_folder is not None and not Path(self.image_folder).is_dir():
            raise SourceError(f"--image-folder {self.image_folder} is not a folder")

    def chunks(self) -> Generator[Chunk, None, None]:
        """Cut each file into chunks of entries: JSON lines by their places, an array whole."""
        for path in self.files:
            if holds_lines(path):
                yield from line_chunks(path, self.chunk_inputs)
                continue
            entries = load_json(path)
            if not isinstance(entries, list):
                keys = ""
                if isinstance(entries, dict):
                    keys = f"; its keys are {shortened(', '.join(entries))}"
                raise SourceError(
                    f"{path}: the JSON holds {type(entries).__name__}, expected an array of entries, or one entry a "
                    f"line{keys}"
                )
            size = Path(path).stat().st_size
            for start in range(0, len(entries), self.chunk_inputs):
                part = entries[start : start + self.chunk_inputs]
                yield Chunk((path, start, part), size * len(part) // len(entries))

    def entries(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        """Yield the entries of a chunk, each with its number or its line."""
        if len(payload) == 4:
            yield from line_entries(payload)
            return
        path, start, part = payload
        for number, entry in enumerate(part, start + 1):
            yield {"file": path, "entry": number}, entry

    def identify(self, where: InputLocation, entry: Any) -> str:
        """Return the entry's own id, or the file's name and the entry's number. Raises Reject."""
        if not isinstance(entry, dict):
            raise Reject(
                "does not fit",
                f"it is {shortened(entry)}; expected an object {{id, image, conversations}}",
            )
        number = where.get("entry", where.get("line"))
        return text_id(entry.get("id"), f"{file_stem(where['file'])}-{number:08d}")

    def sample(self, entry: Any, sample_id: str) -> Sample:
        """Read the conversation and the images that it shows. Raises Reject."""
        dialogue = dialogue_of(entry)
        images = [read_item(item, self.image_folder, self.follow_links) for item in dialogue.images]
        return Sample(id=sample_id, images=images, turns=dialogue.turns, meta=dialogue.meta)
