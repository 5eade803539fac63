"""Count the images, captions and conversations of a folder of shards, sample by sample.

Of images only the headers are read; nothing is decoded.
"""

from __future__ import annotations

import re

from pargo_ds.data.images import image_header
from pargo_ds.data.shards.schema import CAPTION_KINDS, IMAGE_PLACEHOLDER, Sample
from pargo_ds.inspection.distributions import Distribution, Repeats, Tally
from pargo_ds.inspection.tables import Bars, Block, Table

SIDES = (32, 64, 128, 224, 336, 448, 672, 1024, 2048, 4096)
"""Edges of the histogram of resolutions, in pixels of the longer side."""
SMALLEST_SIDE = 32
MOST_IDENTICAL = 0.10
"""If a larger share of the captions than this is equal to another caption, there is a warning."""
LEFT_PLACEHOLDER = re.compile(
    r"</?\s*(?:image|img|picture|video)[\w ]*/?>|<\|[^|<>]*(?:image|vision|img)[^|<>]*\|>", re.I
)


class ShardStatistics:
    """Counts over samples. The memory is bounded, except for 8 bytes for each image and caption."""

    def __init__(self) -> None:
        self.samples = self.conversations = self.without_images = 0
        self.images_per_sample = Distribution()
        self.longer_side, self.shorter_side = Distribution(), Distribution()
        self.image_bytes = Distribution()
        self.formats, self.modes = Tally(), Tally()
        self.unreadable = Tally()
        self.images = Repeats()
        self.characters = {kind: Distribution() for kind in CAPTION_KINDS}
        self.words = {kind: Distribution() for kind in CAPTION_KINDS}
        self.captions = {kind: Repeats() for kind in CAPTION_KINDS}
        self.turns = Distribution()
        self.turn_words = {role: Distribution() for role in ("user", "assistant")}
        self.sources, self.licences = Tally(), Tally()
        self.placeholders: dict[str, str] = {}
        self.with_placeholders = 0

    def add(self, sample: Sample) -> None:
        self.samples += 1
        self.sources.add(sample.source or "(none)")
        self.licences.add(sample.license or "(none)")
        self.images_per_sample.add(len(sample.images))
        self.without_images += not sample.images
        for data in sample.images:
            self._add_image(data)
        for kind, caption in sample.captions.items():
            self.characters[kind].add(len(caption))
            self.words[kind].add(len(caption.split()))
            self.captions[kind].add(caption)
        self._add_turns(sample)
        self._look_for_placeholders(sample)

    def _add_image(self, data: bytes) -> None:
        self.images.add(data)
        self.image_bytes.add(len(data))
        try:
            kind, mode, width, height = image_header(data)
        except ValueError as error:
            self.unreadable.add(str(error).split(" (")[0])
            return
        self.formats.add(kind)
        self.modes.add(mode)
        self.longer_side.add(max(width, height))
        self.shorter_side.add(min(width, height))

    def _add_turns(self, sample: Sample) -> None:
        spoken = [turn for turn in sample.turns if turn["role"] != "system"]
        if not spoken:
            return
        self.conversations += 1
        self.turns.add(len(spoken))
        for turn in spoken:
            words = turn["content"].replace(IMAGE_PLACEHOLDER, " ").split()
            self.turn_words[turn["role"]].add(len(words))

    def _look_for_placeholders(self, sample: Sample) -> None:
        asked = [turn["content"] for turn in sample.turns if turn["role"] == "user"]
        texts = [text.replace(IMAGE_PLACEHOLDER, "") for text in asked]
        texts += [turn["content"] for turn in sample.turns if turn["role"] != "user"]
        texts += sample.captions.values()
        found: list[str] = []
        for text in texts:
            found += LEFT_PLACEHOLDER.findall(text)
        if found:
            self.with_placeholders += 1
            if len(self.placeholders) < 5:
                self.placeholders.setdefault(found[0], sample.id)

    def blocks(self) -> list[Block]:
        """Return tables and histograms in the order in which they are shown."""
        overview = [
            ("samples (image-text pairs)", f"{self.samples:,}"),
            ("images", f"{self.images.count:,}"),
            ("of them the same as an earlier one", _of(self.images.repeated, self.images.count)),
            ("images a sample, mean and most", _mean_most(self.images_per_sample)),
            ("samples without an image", f"{self.without_images:,}"),
            ("conversations", f"{self.conversations:,}"),
            ("turns a conversation, mean and most", _mean_most(self.turns)),
            ("bytes of all images", _bytes(self.image_bytes.total)),
            ("bytes an image, mean", _bytes(self.image_bytes.mean)),
            ("bytes an image, most", _bytes(self.image_bytes.greatest)),
        ]  # fmt: skip
        blocks: list[Block] = [Table("Overview", ("", ""), overview), self._texts()]
        if self.longer_side.count:
            median = self.longer_side.quantile(0.5)
            note = f"median {median:,} pixels; shortest shorter side {self.shorter_side.least:,}"
            blocks.append(
                Bars("Longer side of the images, pixels", self.longer_side.bins(SIDES), note)
            )
            blocks.append(Bars("Formats", self.formats.rows(), f"modes: {_named(self.modes)}"))
        if self.turns.count:
            blocks.append(Bars("Turns a conversation", self.turns.even_bins(8)))
        return [
            *blocks,
            Bars("Sources", self.sources.rows()),
            Bars("Licences", self.licences.rows()),
        ]

    def _texts(self) -> Table:
        """Return the numbers, characters and words of each kind of text, as in the paper's table
        1.
        """
        rows = []
        for kind in CAPTION_KINDS:
            characters, words = self.characters[kind], self.words[kind]
            if words.count:
                middle, most = words.quantile(0.5), words.greatest
                repeated = _of(self.captions[kind].repeated, words.count)
                rows.append((f"{kind} caption", f"{words.count:,}", f"{characters.mean:.1f}", f"{words.mean:.1f}",
                             f"{middle:,}", f"{most:,}", repeated))  # fmt: skip
        for role, words in self.turn_words.items():
            if words.count:
                name = {"user": "question", "assistant": "answer"}[role]
                rows.append((name, f"{words.count:,}", "", f"{words.mean:.1f}", f"{words.quantile(0.5):,}",
                             f"{words.greatest:,}", ""))  # fmt: skip
        header = (
            "text",
            "number",
            "characters",
            "words",
            "median words",
            "most words",
            "same as an earlier one",
        )
        return Table("Texts (characters and words: means)", header, rows)

    def warnings(self) -> list[str]:
        """Return sentences about what people should look at before training."""
        found = []
        if self.unreadable.total:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.unreadable.rows(3))
            found.append(f"{self.unreadable.total:,} images cannot be read: {reasons}")
        tiny = self.shorter_side.below(SMALLEST_SIDE)
        if tiny:
            found.append(
                f"{tiny:,} images are under {SMALLEST_SIDE} pixels high or wide; are they icons?"
            )
        for kind, captions in self.captions.items():
            if captions.count and captions.repeated > MOST_IDENTICAL * captions.count:
                text, count = captions.commonest
                found.append(
                    f"{captions.repeated / captions.count:.0%} of the {kind} captions are the same as another one; "
                    f"the commonest, {_shortened(text)!r}, comes {count:,} times"
                )
        if self.with_placeholders:
            examples = [f"{text!r} in sample {where}" for text, where in self.placeholders.items()]
            shown = ", ".join(examples)
            found.append(
                f"{self.with_placeholders:,} samples have a placeholder left in their text, which would be read as "
                f"words: {shown}. Only {IMAGE_PLACEHOLDER} in a user's turn stands for an image"
            )
        return found


def _mean_most(numbers: Distribution) -> str:
    return f"{numbers.mean:.2f}, {numbers.greatest:,}"


def _of(part: int, whole: int) -> str:
    if not whole:
        return "0"
    return f"{part:,} ({part / whole:.1%})"


def _bytes(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def _named(tally: Tally) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in tally.rows(6))


def _shortened(text: str, most: int = 60) -> str:
    if len(text) <= most:
        return text
    return text[:most] + "..."
