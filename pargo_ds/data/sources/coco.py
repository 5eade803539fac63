"""COCO's caption files: {images: [{id, file_name}], annotations: [{image_id, caption}]} with a picture folder.

Karpathy's files, {images: [{filepath, filename, sentences: [{raw}], split}]}, are read as the same.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
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
    "all": one sample a caption, the picture stored with each (ids ID, ID-2, ID-3, ...). `splits` chooses pictures of
    Karpathy's files by their `split`; files that hold several need it.
    """

    pictures: str
    captions: Literal["first", "all"] = "first"
    caption_as: Literal["coarse", "detailed"] = "coarse"
    splits: tuple[str, ...] = ()
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
        document = load_json(path, each_once=True)
        if isinstance(document, dict) and _is_karpathy(document.get("images")):
            document = _as_coco(_of_splits(path, document["images"], self.splits))
        elif self.splits:
            raise SourceError(f"{path} is no file of Karpathy's kind, so it has no splits; leave out --splits")
        if not isinstance(document, dict) or not all(
            isinstance(document.get(key), list) for key in ("images", "annotations")
        ):
            raise SourceError(f"{path} is no COCO caption file: expected an object with the lists images, annotations")
        known = _check_unique(path, document["images"])
        captions: dict[str, list[tuple[int, str]]] = defaultdict(list)
        stray: list[Input] = []
        for number, annotation in enumerate(document["annotations"], 1):
            fault = _annotation_fault(annotation, known)
            if fault is None:
                captions[_key(annotation["image_id"])].append((number, annotation["caption"]))
            else:
                stray.append(({"file": path, "annotation": number}, fault))
        found: list[Input] = []
        for number, image in enumerate(document["images"], 1):
            found += self._inputs_of_image({"file": path, "image": number}, image, captions)
        return found + stray

    def _inputs_of_image(self, where: Where, image: Any, captions: dict[str, list[tuple[int, str]]]) -> list[Input]:
        key = _key(image.get("id")) if isinstance(image, dict) else ""
        if not key:
            return [(where, Reject("does not fit", f"it is {shortened(image)}; expected {{id, file_name}}"))]
        own = captions.get(key, [])
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


def _key(value: Any) -> str:
    """An id as text, so that 17, 17.0 and "17" are one; "" for what is no id, such as a float that lost digits."""
    if isinstance(value, float) and abs(value) > 2**53:
        return ""
    try:
        return text_id(value, "")
    except Reject:
        return ""


def _check_unique(path: str, images: list[Any]) -> dict[str, tuple[int, Any]]:
    """Id -> (place, file name) of each picture. Raises SourceError when two pictures have one id.

    The same entry twice, as in files that were joined, gives duplicates, which are told and dropped.
    """
    found: dict[str, tuple[int, Any]] = {}
    for number, image in enumerate(images, 1):
        key = _key(image.get("id")) if isinstance(image, dict) else ""
        if not key:
            continue
        other, name = found.setdefault(key, (number, image.get("file_name")))
        if name != image.get("file_name"):
            raise SourceError(
                f"{path}: images {other} ({shortened(name)}) and {number} ({shortened(image.get('file_name'))}) both "
                f"have the id {shortened(image['id'])}, so captions cannot be told apart; give each picture its own id"
            )
    return found


def _is_karpathy(images: Any) -> bool:
    return isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images)


def _of_splits(path: str, images: list[Any], wanted: tuple[str, ...]) -> list[Any]:
    """The entries of the wanted splits. Raises SourceError when it is not said which, or there is no such split."""
    split_of = [str(image.get("split", "")) if isinstance(image, dict) else "" for image in images]
    counts = Counter(split_of)
    shown = ", ".join(f"{name or 'none'}: {count:,}" for name, count in sorted(counts.items()))
    if not wanted and len(counts) == 1:
        return images
    if not wanted:
        raise SourceError(f"{path} holds several splits ({shown}); say which to read, such as --splits train,restval")
    missing = [name for name in wanted if name not in counts]
    if missing:
        raise SourceError(f"{path} has no split {', '.join(missing)}; it has {shown}")
    return [image for image, split in zip(images, split_of, strict=True) if split in wanted]


def _as_coco(images: list[Any]) -> dict[str, list[Any]]:
    """Karpathy's entries as COCO's two lists; what is no entry stays, to become a reject."""
    found: list[Any] = []
    annotations: list[Any] = []
    for image in images:
        if not isinstance(image, dict):
            found.append(image)
            continue
        key = next((image[name] for name in ("cocoid", "imgid", "id") if image.get(name) is not None), None)
        name = image.get("filename")
        if image.get("filepath") and isinstance(name, str):
            name = f"{image['filepath']}/{name}"
        found.append({"id": key, "file_name": name})
        sentences = image.get("sentences")
        for sentence in sentences if isinstance(sentences, list) else []:
            annotations.append(
                {"image_id": key, "caption": sentence.get("raw") if isinstance(sentence, dict) else sentence}
            )
    return {"images": found, "annotations": annotations}


def _annotation_fault(annotation: Any, known: dict[str, Any]) -> Reject | None:
    if not isinstance(annotation, dict):
        return Reject("does not fit", f"it is {shortened(annotation)}; expected {{image_id, caption}}")
    key, caption = _key(annotation.get("image_id")), annotation.get("caption")
    if key not in known:
        reason = f"its image_id {shortened(annotation.get('image_id'))} is not among the images"
        return Reject("picture missing", reason)
    if not isinstance(caption, str) or not caption.strip():
        return Reject("text empty", f"its caption is {shortened(caption)}; expected text")
    return None
