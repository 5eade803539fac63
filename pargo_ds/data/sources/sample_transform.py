"""The last step of every source: a sample is checked, and its images are verified and, if they are
too large, made smaller.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Iterator
from typing import Any

from pargo_ds.data.shards.schema import Sample, caption_problem, check_sample, placeholder_problem
from pargo_ds.data.sources.images import prepared
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.errors import SampleError

MAX_TEXT = 1 << 24
"""Upper bound of the characters of all texts of a sample."""
MAX_BYTES = 1 << 30
"""Upper bound of the bytes of all images of a sample, because the offsets in a shard have 32
bits.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleTransform:
    """Turns a sample as it was read into the one that is stored: it gives all samples their source
    and license, and scales images down to the longest side in pixels (None: they are unchanged).
    """

    source: str = ""
    license: str = ""
    longest_side: int | None = None

    def __post_init__(self) -> None:
        if self.longest_side is not None and self.longest_side < 8:
            raise ValueError(
                f"longest side is {self.longest_side} pixels; expected at least 8, for example 1024"
            )
        for name in (self.source, self.license):
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{ascii(name)} is not UTF-8 text; give source name and license in UTF-8"
                ) from error

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample as it will be stored.

        Raises Reject when a text or an image cannot be stored.
        """
        _check_texts(sample)
        images = []
        for number, data in enumerate(sample.images):
            images.append(prepared(data, number, self.longest_side))
        size = sum(map(len, images))
        if size > MAX_BYTES:
            raise Reject(
                "too large", f"its images have {size:,} bytes; expected at most {MAX_BYTES:,}"
            )
        said = [*(turn["content"] for turn in sample.turns), *sample.captions.values()]
        if any(text.strip() and all(map(_is_invisible, text)) for text in said):
            raise Reject(
                "text empty", "a text holds only characters that cannot be seen, such as U+200B"
            )
        if not sample.turns and not sample.captions:
            raise Reject("text empty", "it has neither conversation nor caption")
        problem = None
        if sample.turns:
            problem = placeholder_problem(sample.turns, len(images))
        problem = problem or caption_problem(sample.captions)
        if problem is not None:
            raise Reject("placeholders", problem)
        stored = dataclasses.replace(
            sample,
            images=images,
            source=self.source or sample.source,
            license=self.license or sample.license,
        )
        try:
            check_sample(stored)
        except SampleError as error:
            raise Reject("does not fit", str(error).partition(": ")[2] or str(error)) from error
        return stored


def _is_invisible(letter: str) -> bool:
    """Whether a character is a blank, a control character or one that only formats others."""
    return letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf")


def _texts(sample: Sample) -> Iterator[Any]:
    yield sample.id
    yield from (turn["content"] for turn in sample.turns)
    yield from sample.captions.values()
    yield json.dumps(sample.meta)


def _check_texts(sample: Sample) -> None:
    texts = list(_texts(sample))
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise Reject("does not fit", f"a text is {shortened(wrong)}; expected text")
    if sum(map(len, texts)) > MAX_TEXT:
        raise Reject(
            "too large",
            f"its texts have {sum(map(len, texts)):,} characters; expected at most {MAX_TEXT:,}",
        )
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Reject(
                "text broken", f"a text holds half a character ({error.reason})"
            ) from error
