"""The kept captions of a run as a source of build_shards: training reads them like all other data.

Each sample has `captions.detailed` (the whole and its parts as one text), `captions.coarse` (the alt
text) and `meta.caption`: the parts, what was cut out and why, and the provenance. What was dropped
is a reject with its reasons, so rejects.jsonl accounts for every selected image.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pargo_ds.captioning.run_files import Row, RunFolder, needed, read_lines
from pargo_ds.captioning.select.select import read_images
from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.sources import Chunk, Reject, Source
from pargo_ds.data.sources.source import InputLocation
from pargo_ds.errors import CaptionError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions(Source):
    """A captioning run; `files` are those that it is made of.

    With `dropped` it gives what was dropped instead of what was kept, where there is a caption: who
    trains on both learns what the filter is worth.
    """

    run: str = ""
    dropped: bool = False

    @classmethod
    def of(cls, folder: str, dropped: bool = False) -> Captions:
        """Return the source of a run's folder. Raises CaptionError when it has not decided yet."""
        run = RunFolder(Path(folder))
        files = [
            needed(run.selected, "select"),
            needed(run.decisions, "decide"),
            needed(run.candidates / "index.json", "select"),
        ]
        return cls(files=tuple(map(str, files)), run=folder, dropped=dropped)

    def chunks(self) -> Generator[Chunk, None, None]:
        """Cut the rows into chunks. Raises CaptionError when decisions and selection differ."""
        run = RunFolder(Path(self.run))
        rows = zip(read_lines(run.selected), read_lines(run.decisions), strict=True)
        number = 0
        try:
            while some := list(itertools.islice(rows, self.chunk_inputs)):
                for selected, decision in some:
                    if selected["id"] != decision["id"]:
                        raise ValueError("another image")
                yield Chunk((self.run, number, some), sum(len(str(row)) for row in some))
                number += len(some)
        except ValueError as error:
            raise CaptionError(
                f"{run.decisions} is not about the images of {run.selected}: the selection has changed. "
                f"Run tools/caption.py caption, score and decide on {self.run}"
            ) from error

    def entries(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        """Yield each decision with its image, which is None for a caption that is not wanted."""
        folder, first, rows = payload
        run = RunFolder(Path(folder))
        wanted = [selected["position"] for selected, decision in rows if self._wants(decision)]
        images = read_images(run, np.array(wanted, np.int64))
        for number, (_, decision) in enumerate(rows, start=first):
            image = None
            if self._wants(decision):
                image = next(images)
            yield {"file": run.decisions.name, "row": number}, (decision, image)

    def _wants(self, decision: Row) -> bool:
        if self.dropped:
            return not decision["kept"] and bool(decision["detailed"])
        return decision["kept"]

    def identify(self, where: InputLocation, entry: Any) -> str:
        """Return the id of the decision's image."""
        return entry[0]["id"]

    def sample(self, entry: Any, sample_id: str) -> Sample:
        """Put the caption beside its image. Raises Reject with the reasons against it."""
        decision, image = entry
        if image is None and decision["kept"]:
            raise Reject("kept", "the caption was kept; --dropped asks for the others")
        if image is None:
            kind, *_ = decision["reasons"]
            said = "; ".join(f"{name}: {text}" for name, text in decision["reasons"].items())
            raise Reject(f"dropped: {kind}", said)
        made = {name: decision[name] for name in ("global", "parts", "cut", "provenance")}
        captions = {}
        if decision["coarse"]:
            captions["coarse"] = decision["coarse"]
        captions["detailed"] = decision["detailed"]
        return dataclasses.replace(image, captions=captions, meta={**image.meta, "caption": made})
