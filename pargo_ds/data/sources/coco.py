"""COCO's caption files: {images: [{id, file_name}], annotations: [{image_id, caption}]} with a picture folder."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pargo_ds.data.schema import Sample
from pargo_ds.data.sources.json_files import load_json
from pargo_ds.data.sources.pictures import read_file
from pargo_ds.data.sources.rejects import Reject, SourceError, shortened
from pargo_ds.data.sources.source import Chunk, Source, Where, text_id

Input = tuple[Where, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coco(Source):
    """Pictures below `pictures` with their captions.

    captions "first": one sample a picture with its first caption, the others kept in meta["other_captions"];
    "all": one sample a caption, the picture stored with each (ids ID, ID-2, ID-3, ...).
    """

    pictures: str
    captions: Literal["first", "all"] = "first"
    caption_as: Literal["coarse", "detailed"] = "coarse"
    follow_links: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.pictures).is_dir():
            raise SourceError(f"--pictures {self.pictures} is not a folder")

    def chunks(self) -> Iterator[Chunk]:
        for path in self.files:
            inputs, size = self._inputs(path), Path(path).stat().st_size
            for start in range(0, len(inputs), self.chunk_inputs):
                part = inputs[start : start + self.chunk_inputs]
                yield Chunk(part, size * len(part) // len(inputs))

    def _inputs(self, path: str) -> list[Input]:
        """One input for each sample to be; then one for each annotation that belongs to no picture."""
        document = load_json(path)
        if not isinstance(document, dict) or not all(
            isinstance(document.get(key), list) for key in ("images", "annotations")
        ):
            raise SourceError(f"{path} is no COCO caption file: expected an object with the lists images, annotations")
        captions: dict[int | str, list[tuple[int, str]]] = defaultdict(list)
        known = {image["id"] for image in document["images"] if isinstance(image, dict) and _is_key(image.get("id"))}
        stray: list[Input] = []
        for number, annotation in enumerate(document["annotations"], 1):
            fault = _annotation_fault(annotation, known)
            if fault is None:
                captions[annotation["image_id"]].append((number, annotation["caption"]))
            else:
                stray.append(({"file": path, "annotation": number}, fault))
        found: list[Input] = []
        for number, image in enumerate(document["images"], 1):
            found += self._inputs_of_image({"file": path, "image": number}, image, captions)
        return found + stray

    def _inputs_of_image(self, where: Where, image: Any, captions: dict[Any, list[tuple[int, str]]]) -> list[Input]:
        if not isinstance(image, dict) or not _is_key(image.get("id")):
            return [(where, Reject("does not fit", f"it is {shortened(image)}; expected {{id, file_name}}"))]
        own = captions.get(image["id"], [])
        facts = {"id": image["id"], "file_name": image.get("file_name")}
        if not own:
            return [(where, Reject("text empty", f"picture {shortened(image['id'])} has no caption"))]
        texts = [text for _, text in own]
        if self.captions == "first":
            return [(where, {**facts, "caption": texts[0], "others": texts[1:]})]
        return [
            ({**where, "annotation": number}, {**facts, "caption": text, "number": place, "others": []})
            for place, (number, text) in enumerate(own, 1)
        ]

    def entries(self, payload: Any) -> Iterator[tuple[Where, Any]]:
        yield from payload

    def identify(self, where: Where, entry: Any) -> str:
        number = entry.get("number", 1)
        return text_id(entry["id"], "0") + (f"-{number}" if number > 1 else "")

    def sample(self, entry: Any, sample_id: str) -> Sample:
        image = read_file(self.pictures, entry["file_name"], self.follow_links)
        meta = {"other_captions": entry["others"]} if entry["others"] else {}
        return Sample(id=sample_id, images=[image], captions={self.caption_as: entry["caption"]}, meta=meta)


def _is_key(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _annotation_fault(annotation: Any, known: set[int | str]) -> Reject | None:
    if not isinstance(annotation, dict):
        return Reject("does not fit", f"it is {shortened(annotation)}; expected {{image_id, caption}}")
    key, caption = annotation.get("image_id"), annotation.get("caption")
    if not _is_key(key) or key not in known:
        return Reject("picture missing", f"its image_id {shortened(key)} is not among the images")
    if not isinstance(caption, str) or not caption.strip():
        return Reject("text empty", f"its caption is {shortened(caption)}; expected text")
    return None
