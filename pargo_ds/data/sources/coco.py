"""COCO's caption files, {images: [{id, file_name}], annotations: [{image_id, caption}]}, with a
folder of images.

Karpathy's files, {images: [{filepath, filename, sentences: [{raw}], split}]}, are read, too.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal

from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.sources.images import read_file
from pargo_ds.data.sources.json_files import load_json
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.data.sources.source import Chunk, InputLocation, Source, text_id
from pargo_ds.errors import SourceError

Input = tuple[InputLocation, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coco(Source):
    """Images below `image_folder` with their captions.

    Attributes:
        captions: "first": each image gives one sample with its first caption; the other captions
            are kept in meta["other_captions"]. "all": each caption gives one sample, with a copy of
            the image (ids ID, ID-2, ID-3, ...).
        splits: chooses images of Karpathy's files by their `split`; required for files that hold
            several splits.
    """

    image_folder: str
    captions: Literal["first", "all"] = "first"
    caption_as: Literal["coarse", "detailed"] = "coarse"
    splits: tuple[str, ...] = ()
    follow_links: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.image_folder).is_dir():
            raise SourceError(f"--image-folder {self.image_folder} is not a folder")

    def chunks(self) -> Generator[Chunk, None, None]:
        """Cut the samples of each file into chunks; a file is parsed whole."""
        for path in self.files:
            inputs, size = self._inputs(path), Path(path).stat().st_size
            for start in range(0, len(inputs), self.chunk_inputs):
                part = inputs[start : start + self.chunk_inputs]
                yield Chunk(part, size * len(part) // len(inputs))

    def _inputs(self, path: str) -> list[Input]:
        """Return one input for each future sample, then one for each annotation without an
        image.
        """
        document = load_json(path, each_once=True)
        if isinstance(document, dict) and _is_karpathy(document.get("images")):
            document = _as_coco(_of_splits(path, document["images"], self.splits))
        elif self.splits:
            raise SourceError(
                f"{path} is no file of Karpathy's kind, so it has no splits; leave out --splits"
            )
        if not _is_coco(document):
            raise SourceError(
                f"{path} is no COCO caption file: expected an object with the lists images, annotations"
            )
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

    def _inputs_of_image(
        self, where: InputLocation, image: Any, captions: dict[str, list[tuple[int, str]]]
    ) -> list[Input]:
        key = _key_of(image)
        if not key:
            fault = f"it is {shortened(image)}; expected {{id, file_name}}"
            return [(where, Reject("does not fit", fault))]
        own = captions.get(key, [])
        facts = {"id": image["id"], "file_name": image.get("file_name")}
        if not own:
            return [(where, Reject("text empty", f"image {shortened(image['id'])} has no caption"))]
        texts = [text for _, text in own]
        if self.captions == "first":
            return [(where, {**facts, "caption": texts[0], "others": texts[1:]})]
        found: list[Input] = []
        for place, (number, text) in enumerate(own, 1):
            entry = {**facts, "caption": text, "number": place, "others": []}
            found.append(({**where, "annotation": number}, entry))
        return found

    def entries(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        """Yield the inputs, which the chunk already holds parsed."""
        yield from payload

    def identify(self, where: InputLocation, entry: Any) -> str:
        """Return the id of the image, with -2, -3, ... for its further captions."""
        name, number = text_id(entry["id"], "0"), entry.get("number", 1)
        if number > 1:
            return f"{name}-{number}"
        return name

    def sample(self, entry: Any, sample_id: str) -> Sample:
        """Read the image and put the caption beside it. Raises Reject."""
        image = read_file(self.image_folder, entry["file_name"], self.follow_links)
        meta = {}
        if entry["others"]:
            meta["other_captions"] = entry["others"]
        return Sample(
            id=sample_id, images=[image], captions={self.caption_as: entry["caption"]}, meta=meta
        )


def _key(value: Any) -> str:
    """Return an id as text, so that 17, 17.0 and "17" are the same id. Return "" for a value that
    is no id, such as a float that has lost digits.
    """
    if isinstance(value, float) and abs(value) > 2**53:
        return ""
    try:
        return text_id(value, "")
    except Reject:
        return ""


def _check_unique(path: str, images: list[Any]) -> dict[str, tuple[int, Any]]:
    """Return (place, file name) of each image by its id. Raises SourceError when two different
    images have the same id.

    A repeated entry, as in files that were joined, is allowed: it gives duplicate samples, which
    are later left out and counted.
    """
    found: dict[str, tuple[int, Any]] = {}
    for number, image in enumerate(images, 1):
        key = _key_of(image)
        if not key:
            continue
        other, name = found.setdefault(key, (number, image.get("file_name")))
        if name != image.get("file_name"):
            raise SourceError(
                f"{path}: images {other} ({shortened(name)}) and {number} ({shortened(image.get('file_name'))}) both "
                f"have the id {shortened(image['id'])}, so captions cannot be told apart; give each image its own id"
            )
    return found


def _key_of(image: Any) -> str:
    """The id of an image as text; "" for an entry without one."""
    if not isinstance(image, dict):
        return ""
    return _key(image.get("id"))


def _is_coco(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    return all(isinstance(document.get(key), list) for key in ("images", "annotations"))


def _is_karpathy(images: Any) -> bool:
    if not isinstance(images, list):
        return False
    return any(isinstance(image, dict) and "sentences" in image for image in images)


def _of_splits(path: str, images: list[Any], wanted: tuple[str, ...]) -> list[Any]:
    """Return the entries of the wanted splits.

    Raises SourceError when there are several splits and none is named, or a named one is missing.
    """
    split_of = [_split_of(image) for image in images]
    counts = Counter(split_of)
    shown = ", ".join(f"{name or 'none'}: {count:,}" for name, count in sorted(counts.items()))
    if not wanted and len(counts) == 1:
        return images
    if not wanted:
        raise SourceError(
            f"{path} holds several splits ({shown}); say which to read, such as --splits train,restval"
        )
    missing = [name for name in wanted if name not in counts]
    if missing:
        raise SourceError(f"{path} has no split {', '.join(missing)}; it has {shown}")
    return [image for image, split in zip(images, split_of, strict=True) if split in wanted]


def _split_of(image: Any) -> str:
    if not isinstance(image, dict):
        return ""
    return str(image.get("split", ""))


def _as_coco(images: list[Any]) -> dict[str, list[Any]]:
    """Convert Karpathy's entries to COCO's two lists. Faulty entries are kept and become
    rejects.
    """
    found: list[Any] = []
    annotations: list[Any] = []
    for image in images:
        if not isinstance(image, dict):
            found.append(image)
            continue
        given = [image[name] for name in ("cocoid", "imgid", "id") if image.get(name) is not None]
        key = next(iter(given), None)
        name = image.get("filename")
        if image.get("filepath") and isinstance(name, str):
            name = f"{image['filepath']}/{name}"
        found.append({"id": key, "file_name": name})
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            continue
        for sentence in sentences:
            if isinstance(sentence, dict):
                sentence = sentence.get("raw")
            annotations.append({"image_id": key, "caption": sentence})
    return {"images": found, "annotations": annotations}


def _annotation_fault(annotation: Any, known: dict[str, Any]) -> Reject | None:
    if not isinstance(annotation, dict):
        return Reject(
            "does not fit", f"it is {shortened(annotation)}; expected {{image_id, caption}}"
        )
    key, caption = _key(annotation.get("image_id")), annotation.get("caption")
    if key not in known:
        reason = f"its image_id {shortened(annotation.get('image_id'))} is not among the images"
        return Reject("image missing", reason)
    if not isinstance(caption, str) or not caption.strip():
        return Reject("text empty", f"its caption is {shortened(caption)}; expected text")
    return None
