"""The sample format of the project: the columns of an MDS shard, and the checks of a sample.

A sample has images, a conversation about them, and captions. A sample is checked completely when it
is written (`check_sample`), so only its structure is checked when it is read. Nothing is pickled:
text is stored as JSON, and images as their encoded files. This module imports neither torch nor
streaming, whose import takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

import xxhash

from pargo_ds.errors import SampleError

COLUMNS: dict[str, str] = {
    "id": "str",
    "images": "bytes",
    "turns": "json",
    "captions": "json",
    "source": "str",
    "license": "str",
    "meta": "json",
}
"""MDS encoding of each column. This is part of the file format: a change makes older shards
unreadable.
"""

IMAGE_PLACEHOLDER = "<image>"
"""Marks the place of one image in stored text."""

ROLES = ("system", "user", "assistant")
CAPTION_KINDS = ("coarse", "detailed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One training or evaluation example.

    `images` are encoded image files (PNG, JPEG, WEBP, ...) in the order of their placeholders;
    `turns` alternate user and assistant, after at most one system turn; `captions` may hold
    "coarse" and "detailed"; `meta` is free JSON (for composed scenes: the truth, see
    `pargo_ds.scenes.splits`). Turns, captions and images may each be empty.
    """

    id: str
    images: list[bytes] = dataclasses.field(default_factory=list)
    turns: list[dict[str, str]] = dataclasses.field(default_factory=list)
    captions: dict[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    license: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_mds(self) -> dict[str, Any]:
        """Return the row that MDSWriter stores.

        Raises `SampleError` if the sample does not fit the format.
        """
        check_sample(self)
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        row["images"] = pack_images(self.images)
        return row

    @classmethod
    def from_mds(cls, row: dict[str, Any], where: str = "") -> Sample:
        """Rebuild a sample from a stored row; `where`, for example "shard.00003.mds", is named in
        errors.

        Raises:
            SampleError: a column is missing or of another type, or the images cannot be unpacked.
        """
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise SampleError(
                _message(
                    row.get("id", "?"),
                    where,
                    f"columns {missing} are missing; expected {list(COLUMNS)}",
                )
            )
        try:
            images = unpack_images(row["images"])
        except ValueError as error:
            raise SampleError(_message(row["id"], where, str(error))) from error
        sample = cls(**{**{name: row[name] for name in COLUMNS}, "images": images})
        problem = _structure_problem(sample)
        if problem:
            raise SampleError(f"sample {sample.id!r}: {problem}")
        return sample


def pack_images(images: list[bytes]) -> bytes:
    """Join image files into one column of bytes: the number of files, the length of each (both
    uint32, little-endian), and then the files.

    [b"ab", b"c"] -> b"\\x02\\0\\0\\0" b"\\x02\\0\\0\\0" b"\\x01\\0\\0\\0" b"abc"
    """
    return struct.pack(f"<{1 + len(images)}I", len(images), *map(len, images)) + b"".join(images)


def unpack_images(packed: bytes) -> list[bytes]:
    """Undo `pack_images`. Raises ValueError when the lengths do not add up to the stored bytes."""
    if len(packed) < 4:
        raise ValueError(
            f"the images column holds {len(packed)} bytes; expected at least 4 (the number of images)"
        )
    (count,) = struct.unpack_from("<I", packed)
    start = 4 + 4 * count
    if len(packed) < start:
        raise ValueError(
            f"the images column says {count} images but is only {len(packed)} bytes long; it was cut"
        )
    lengths = struct.unpack_from(f"<{count}I", packed, 4)
    if start + sum(lengths) != len(packed):
        raise ValueError(
            f"the images column holds {len(packed)} bytes but its {count} images need {start + sum(lengths)}; "
            "write the shards anew"
        )
    images = []
    for length in lengths:
        images.append(bytes(packed[start : start + length]))
        start += length
    return images


def placeholder_problem(turns: list[dict[str, str]], images: int) -> str | None:
    """Describe what is wrong with the places of `images` images in a conversation; None if each
    image has one place in a user turn.

    Building and training both use this check, so training accepts each sample that was built.
    """
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant" and IMAGE_PLACEHOLDER in turn["content"]:
            return f"turn {number} is an answer with {IMAGE_PLACEHOLDER} in it; images belong to user turns"
    found = sum(turn["content"].count(IMAGE_PLACEHOLDER) for turn in turns)
    if found != images:
        return f"{found} image placeholders but {images} images; each placeholder needs one image"
    return None


def caption_problem(captions: dict[str, str]) -> str | None:
    """Describe what is wrong with captions that training would use as answers; None if nothing
    is.
    """
    for kind, text in captions.items():
        if IMAGE_PLACEHOLDER in text:
            return f"the {kind} caption holds {IMAGE_PLACEHOLDER}, which stands for an image; remove it from the text"
    return None


def id_digest(sample_id: str) -> int:
    """Return an 8-byte hash of an id, by which equal ids are found."""
    return xxhash.xxh64_intdigest(sample_id.encode())


def check_sample(sample: Sample) -> None:
    """Raise `SampleError` with the sample's id and the reason unless the sample fits the format."""
    for check in (_structure_problem, _check_images, _check_turns, _check_captions, _check_meta):
        problem = check(sample)
        if problem:
            raise SampleError(f"sample {sample.id!r}: {problem}")


def _message(sample_id: Any, where: str, problem: str) -> str:
    place = f" in {where}" if where else ""
    return f"sample {sample_id!r}{place}: {problem}"


FIELD_TYPES = {
    "id": (str, "text"),
    "source": (str, "text"),
    "license": (str, "text"),
    "turns": (list, "a list of {role, content}"),
    "captions": (dict, f"an object with {' and '.join(CAPTION_KINDS)}"),
    "meta": (dict, "an object"),
}


def _structure_problem(sample: Sample) -> str | None:
    """Describe what is wrong with the types of a sample's fields or with one of its turns; None if
    nothing is.
    """
    for name, (kind, expected) in FIELD_TYPES.items():
        value = getattr(sample, name)
        if not isinstance(value, kind):
            return f"{name} is a {type(value).__name__}; expected {expected}"
    if not sample.id:
        return "the id is empty; every sample needs one"
    for number, turn in enumerate(sample.turns):
        if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
            return f"turn {number} is {turn!r}; expected exactly the keys role and content"
        if turn["role"] not in ROLES:
            return (
                f"turn {number} has the role {turn['role']!r}; expected one of {', '.join(ROLES)}"
            )
        if not isinstance(turn["content"], str):
            return f"turn {number} ({turn['role']}) has no text"
    for caption, text in sample.captions.items():
        if not isinstance(text, str):
            return f"the {caption} caption is a {type(text).__name__}; expected text"
    return None


def _check_images(sample: Sample) -> str | None:
    for number, image in enumerate(sample.images):
        if not isinstance(image, bytes):
            return (
                f"image {number} is a {type(image).__name__}; expected the bytes of an image file"
            )
        if not image:
            return f"image {number} is empty (0 bytes)"
    return None


def _check_turns(sample: Sample) -> str | None:
    for number, turn in enumerate(sample.turns):
        if not turn["content"].strip():
            return f"turn {number} ({turn['role']}) has no text"
    spoken = sample.turns
    if spoken and spoken[0]["role"] == "system":
        spoken = spoken[1:]
    for number, turn in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if turn["role"] != expected:
            return f"the role {turn['role']} stands where the {expected} should speak; the two must alternate"
    if len(spoken) % 2:
        return "the last user turn has no answer; end the conversation with an assistant turn"
    if not sample.turns:
        return None
    return placeholder_problem(sample.turns, len(sample.images))


def _check_captions(sample: Sample) -> str | None:
    for kind, text in sample.captions.items():
        if kind not in CAPTION_KINDS:
            return f"unknown caption {kind!r}; expected one of {', '.join(CAPTION_KINDS)}"
        if not text.strip():
            return f"the {kind} caption is empty"
    if sample.captions and not sample.images:
        return "captions but no image to describe"
    return caption_problem(sample.captions)


def _check_meta(sample: Sample) -> str | None:
    try:
        json.dumps(sample.meta)
    except (TypeError, ValueError) as error:
        return (
            f"meta cannot be written as JSON ({error}); use plain numbers, text, lists and objects"
        )
    return None
