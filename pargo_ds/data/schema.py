"""The one sample format of the project: its columns in an MDS shard, and the checks it must pass.

A sample is some pictures, a conversation about them, and captions. Writer and readers alike go through `Sample`, so a
shard never holds what a reader would not accept. Nothing is pickled: text is JSON, pictures are their encoded files.
This module imports neither torch nor streaming (whose import takes seconds).
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

import xxhash

COLUMNS: dict[str, str] = {
    "id": "str",
    "images": "bytes",
    "turns": "json",
    "captions": "json",
    "source": "str",
    "license": "str",
    "meta": "json",
}
"""Column name -> MDS encoding. Part of the file format: a change makes older shards unreadable."""

IMAGE_PLACEHOLDER = "<image>"
"""How stored text marks the place of one picture."""

ROLES = ("system", "user", "assistant")
CAPTION_KINDS = ("coarse", "detailed")


class SampleError(ValueError):
    """A sample that does not fit the format; the message names its id and the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One training or evaluation example.

    `images` are encoded picture files (PNG, JPEG, WEBP, ...) in the order of their placeholders; `turns` alternate user
    and assistant, after at most one system turn; `captions` may hold "coarse" and "detailed"; `meta` is free JSON (for
    composed scenes: the truth, see `pargo_ds.data.scene_splits`). Turns, captions and pictures may each be empty.
    """

    id: str
    images: list[bytes] = dataclasses.field(default_factory=list)
    turns: list[dict[str, str]] = dataclasses.field(default_factory=list)
    captions: dict[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    license: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_mds(self) -> dict[str, Any]:
        """Return the row that MDSWriter stores. Raises `SampleError` if the sample does not fit the format."""
        check_sample(self)
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        row["images"] = pack_images(self.images)
        return row

    @classmethod
    def from_mds(cls, row: dict[str, Any], where: str = "") -> Sample:
        """Rebuild a sample from a stored row; `where` (for example "shard.00003.mds") goes into the error message.

        Raises:
            SampleError: a column is missing, the pictures cannot be unpacked, or the sample does not fit the format.
        """
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise SampleError(
                _message(row.get("id", "?"), where, f"columns {missing} are missing; expected {list(COLUMNS)}")
            )
        try:
            images = unpack_images(row["images"])
        except ValueError as error:
            raise SampleError(_message(row["id"], where, str(error))) from error
        sample = cls(**{**{name: row[name] for name in COLUMNS}, "images": images})
        check_sample(sample, where)
        return sample


def pack_images(images: list[bytes]) -> bytes:
    """Join picture files into one bytes column: count, then each length (uint32, little-endian), then the files.

    [b"ab", b"c"] -> b"\\x02\\0\\0\\0" b"\\x02\\0\\0\\0" b"\\x01\\0\\0\\0" b"abc"
    """
    return struct.pack(f"<{1 + len(images)}I", len(images), *map(len, images)) + b"".join(images)


def unpack_images(packed: bytes) -> list[bytes]:
    """Undo `pack_images`. Raises ValueError when the lengths do not add up to what is there."""
    if len(packed) < 4:
        raise ValueError(f"the images column holds {len(packed)} bytes; expected at least 4 (the number of pictures)")
    (count,) = struct.unpack_from("<I", packed)
    start = 4 + 4 * count
    if len(packed) < start:
        raise ValueError(f"the images column says {count} pictures but is only {len(packed)} bytes long; it was cut")
    lengths = struct.unpack_from(f"<{count}I", packed, 4)
    if start + sum(lengths) != len(packed):
        raise ValueError(
            f"the images column holds {len(packed)} bytes but its {count} pictures need {start + sum(lengths)}; "
            "write the shards anew"
        )
    images = []
    for length in lengths:
        images.append(bytes(packed[start : start + length]))
        start += length
    return images


def placeholder_problem(turns: list[dict[str, str]], images: int) -> str | None:
    """What is wrong with the places of `images` pictures in a conversation; None when each has one place in a question.

    Building and training ask here, so a sample that was built is one that training takes.
    """
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant" and IMAGE_PLACEHOLDER in turn["content"]:
            return f"turn {number} is an answer with {IMAGE_PLACEHOLDER} in it; pictures belong to user turns"
    found = sum(turn["content"].count(IMAGE_PLACEHOLDER) for turn in turns)
    if found != images:
        return f"{found} image placeholders but {images} images; each placeholder needs one image"
    return None


def caption_problem(captions: dict[str, str]) -> str | None:
    """What is wrong with captions that training would make answers of; None for nothing."""
    for kind, text in captions.items():
        if IMAGE_PLACEHOLDER in text:
            return f"the {kind} caption holds {IMAGE_PLACEHOLDER}, which stands for a picture; remove it from the text"
    return None


def id_digest(sample_id: str) -> int:
    """8 bytes of an id: equal ids are found by it."""
    return xxhash.xxh64_intdigest(sample_id.encode())


def check_sample(sample: Sample, where: str = "") -> None:
    """Raise `SampleError` with the sample's id and the reason unless the sample fits the format."""
    for check in (_check_texts, _check_images, _check_turns, _check_captions, _check_meta):
        problem = check(sample)
        if problem:
            raise SampleError(_message(sample.id, where, problem))


def _message(sample_id: Any, where: str, problem: str) -> str:
    return f"sample {sample_id!r}{f' in {where}' if where else ''}: {problem}"


def _check_texts(sample: Sample) -> str | None:
    for name in ("id", "source", "license"):
        if not isinstance(getattr(sample, name), str):
            return f"{name} is a {type(getattr(sample, name)).__name__}; expected text"
    return None if sample.id else "the id is empty; every sample needs one"


def _check_images(sample: Sample) -> str | None:
    for number, image in enumerate(sample.images):
        if not isinstance(image, bytes):
            return f"picture {number} is a {type(image).__name__}; expected the bytes of a picture file"
        if not image:
            return f"picture {number} is empty (0 bytes)"
    return None


def _check_turns(sample: Sample) -> str | None:
    if not isinstance(sample.turns, list):
        return f"turns is a {type(sample.turns).__name__}; expected a list of {{role, content}}"
    for number, turn in enumerate(sample.turns):
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            return f"turn {number} is {turn!r}; expected exactly the keys role and content"
        if turn["role"] not in ROLES:
            return f"turn {number} has the role {turn['role']!r}; expected one of {', '.join(ROLES)}"
        if not isinstance(turn["content"], str) or not turn["content"].strip():
            return f"turn {number} ({turn['role']}) has no text"
    spoken = sample.turns[1:] if sample.turns and sample.turns[0]["role"] == "system" else sample.turns
    for number, turn in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if turn["role"] != expected:
            return f"the role {turn['role']} stands where the {expected} should speak; the two must alternate"
    if len(spoken) % 2:
        return "the last user turn has no answer; end the conversation with an assistant turn"
    return placeholder_problem(sample.turns, len(sample.images)) if sample.turns else None


def _check_captions(sample: Sample) -> str | None:
    if not isinstance(sample.captions, dict):
        return f"captions is a {type(sample.captions).__name__}; expected an object with {' and '.join(CAPTION_KINDS)}"
    for kind, text in sample.captions.items():
        if kind not in CAPTION_KINDS:
            return f"unknown caption {kind!r}; expected one of {', '.join(CAPTION_KINDS)}"
        if not isinstance(text, str) or not text.strip():
            return f"the {kind} caption is empty"
    if sample.captions and not sample.images:
        return "captions but no picture to describe"
    return caption_problem(sample.captions)


def _check_meta(sample: Sample) -> str | None:
    if not isinstance(sample.meta, dict):
        return f"meta is a {type(sample.meta).__name__}; expected an object"
    try:
        json.dumps(sample.meta)
    except (TypeError, ValueError) as error:
        return f"meta cannot be written as JSON ({error}); use plain numbers, text, lists and objects"
    return None
