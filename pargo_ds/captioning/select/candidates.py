"""The last step of every source when images are selected: what may be captioned, with its facts.

The sources, their workers, their parts of a Slurm array and their resumption are those of
data/building: a candidate is a sample whose `meta.selected` holds what select.py decides by. The
readers of shards (folder.py, reader.py) are imported inside the functions: with them comes torch, and
the command line should answer `--help` at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pargo_ds.captioning.language import language_problem
from pargo_ds.captioning.photos.nsfw import nsfw_score
from pargo_ds.captioning.select.image_hash import draw_of, image_digest, perceptual_hash
from pargo_ds.data.images import read_image
from pargo_ds.data.shards.schema import CAPTION_KINDS, Sample, caption_problem
from pargo_ds.data.sources import Chunk, Reject, SampleTransform, Source
from pargo_ds.data.sources.images import prepared
from pargo_ds.data.sources.source import InputLocation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates(SampleTransform):
    """Keeps a sample of one image whose draw is below `share` and that is large and plain enough.

    `shortest_side` in pixels; `aspect` is the longer side over the shorter one; `english` asks for
    an alt text that may be English (an image without one passes); `nsfw` is the file of the model whose
    score becomes one of the facts (None: there is no such score). The conversation is left out.
    """

    seed: int = 0
    share: float = 1.0
    shortest_side: int = 200
    aspect: float = 3.0
    english: bool = True
    nsfw: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"a share of {self.share} of the images; expected above 0, at most 1")
        if self.shortest_side < 1 or self.aspect < 1:
            raise ValueError(
                f"shortest side {self.shortest_side}, aspect {self.aspect}; expected at least 1 each"
            )

    def __call__(self, sample: Sample) -> Sample:
        """The candidate; raises Reject with the reason for what is not to be captioned."""
        if len(sample.images) != 1:
            raise Reject(
                "not one image", f"it has {len(sample.images)} images; a caption describes one"
            )
        data = sample.images[0]
        digest = image_digest(data)
        draw = draw_of(digest, self.seed)
        if draw >= self.share:
            raise Reject("not drawn", f"its draw is {draw:.4f}; the share is {self.share}")
        captions = self._captions(sample)
        facts = {"image": digest, "draw": draw, **self._looks(data)}
        if self.longest_side is not None:
            data = prepared(data, 0, self.longest_side)
        return Sample(
            id=sample.id,
            images=[data],
            captions=captions,
            source=self.source or sample.source,
            license=self.license or sample.license,
            meta={**sample.meta, "selected": facts},
        )

    def _captions(self, sample: Sample) -> dict[str, str]:
        captions = {}
        for kind, text in sample.captions.items():
            if kind in CAPTION_KINDS and isinstance(text, str) and text.strip():
                captions[kind] = text
        if caption_problem(captions) is not None:
            raise Reject("placeholders", str(caption_problem(captions)))
        alt_text = captions.get("coarse") or captions.get("detailed")
        if self.english and alt_text:
            problem = language_problem(alt_text)
            if problem is not None:
                raise Reject("not English", f"of its alt text {problem}")
        return captions

    def _looks(self, data: bytes) -> dict[str, Any]:
        try:
            image = read_image(data)
        except ValueError as error:
            raise Reject("image broken", f"the image {error}") from error
        shorter, longer = sorted(image.size)
        if shorter < self.shortest_side:
            raise Reject(
                "too small",
                f"{image.width} x {image.height} pixels; the shorter side has at least "
                f"{self.shortest_side}",
            )
        if longer > self.aspect * shorter:
            raise Reject(
                "too long",
                f"{image.width} x {image.height} pixels; one side is at most {self.aspect:g} times "
                "the other one",
            )
        looks = {
            "width": image.width,
            "height": image.height,
            "hash": f"{perceptual_hash(image):016x}",
        }
        if self.nsfw is not None:
            looks["nsfw"] = nsfw_score(image, self.nsfw)
        return looks


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSource(Source):
    """Folders of shards, local or in an object store, as a source: what build_shards wrote.

    `folders` are their addresses; `files` follow from them.
    """

    folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, folders: list[str]) -> ShardSource:
        """Open the folders (an object store's index is fetched); raises as `open_folder`."""
        from pargo_ds.data.shards.folder import open_folder

        indices = tuple(str(open_folder(path).local / "index.json") for path in folders)
        return cls(files=indices, folders=tuple(folders))

    def weight(self) -> int:
        """Return the number of samples in all folders."""
        from pargo_ds.data.shards.folder import open_folder

        return sum(int(open_folder(path).starts[-1]) for path in self.folders)

    def chunks(self) -> Generator[Chunk, None, None]:
        """Cut each folder into ranges of samples."""
        from pargo_ds.data.shards.folder import open_folder

        for path in self.folders:
            total = int(open_folder(path).starts[-1])
            for start in range(0, total, self.chunk_inputs):
                end = min(start + self.chunk_inputs, total)
                yield Chunk((path, start, end), end - start)

    def entries(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        """Read the samples of a range."""
        from pargo_ds.data.shards.folder import open_folder
        from pargo_ds.data.shards.reader import SampleReader

        path, start, end = payload
        rows = SampleReader([open_folder(path)]).rows(np.arange(start, end))
        for position, row in zip(range(start, end), rows, strict=True):
            yield {"file": Path(path).name, "row": position}, Sample.from_mds(row, path)

    def identify(self, where: InputLocation, entry: Any) -> str:
        """Return the id of the stored sample."""
        return entry.id

    def sample(self, entry: Any, sample_id: str) -> Sample:
        """Return the stored sample itself."""
        return entry
