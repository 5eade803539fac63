"""What a folder of shards holds: pictures, captions and conversations, counted sample by sample.

Pictures are counted by the headers of their files; nothing is decoded.
"""

from __future__ import annotations

import re

from pargo_ds.data.images import picture_header
from pargo_ds.data.schema import CAPTION_KINDS, IMAGE_PLACEHOLDER, Sample
from pargo_ds.evaluation.distributions import Distribution, Repeats, Tally
from pargo_ds.evaluation.tables import Bars, Block, Table

SIDES = (32, 64, 128, 224, 336, 448, 672, 1024, 2048, 4096)
"""Edges of the resolution histogram, pixels of the longer side."""
SMALLEST_SIDE = 32
MOST_IDENTICAL = 0.10
"""Share of captions that may repeat another one before it is worth a warning."""
LEFT_PLACEHOLDER = re.compile(
    r"</?\s*(?:image|img|picture|video)[\w ]*/?>|<\|[^|<>]*(?:image|vision|img)[^|<>]*\|>", re.I
)


class ShardStatistics:
    """Counts over samples; memory is bounded but for 8 bytes for each picture and caption."""

    def __init__(self) -> None:
        self.samples = self.conversations = self.without_pictures = 0
        self.pictures_per_sample = Distribution()
        self.longer_side, self.shorter_side = Distribution(), Distribution()
        self.picture_bytes = Distribution()
        self.formats, self.modes = Tally(), Tally()
        self.unreadable = Tally()
        self.pictures = Repeats()
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
        self.pictures_per_sample.add(len(sample.images))
        self.without_pictures += not sample.images
        for data in sample.images:
            self._add_picture(data)
        for kind, caption in sample.captions.items():
            self.characters[kind].add(len(caption))
            self.words[kind].add(len(caption.split()))
            self.captions[kind].add(caption)
        self._add_turns(sample)
        self._look_for_placeholders(sample)

    def _add_picture(self, data: bytes) -> None:
        self.pictures.add(data)
        self.picture_bytes.add(len(data))
        try:
            kind, mode, width, height = picture_header(data)
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
            self.turn_words[turn["role"]].add(len(turn["content"].replace(IMAGE_PLACEHOLDER, " ").split()))

    def _look_for_placeholders(self, sample: Sample) -> None:
        texts = [turn["content"].replace(IMAGE_PLACEHOLDER, "") for turn in sample.turns if turn["role"] == "user"]
        texts += [turn["content"] for turn in sample.turns if turn["role"] != "user"]
        found = [match for text in (*texts, *sample.captions.values()) for match in LEFT_PLACEHOLDER.findall(text)]
        if found:
            self.with_placeholders += 1
            if len(self.placeholders) < 5:
                self.placeholders.setdefault(found[0], sample.id)

    def blocks(self) -> list[Block]:
        """Tables and histograms, in the order of reading."""
        overview = [
            ("samples (picture-text pairs)", f"{self.samples:,}"),
            ("pictures", f"{self.pictures.count:,}"),
            ("of them the same as an earlier one", _of(self.pictures.repeated, self.pictures.count)),
            ("pictures a sample, mean and most", _mean_most(self.pictures_per_sample)),
            ("samples without a picture", f"{self.without_pictures:,}"),
            ("conversations", f"{self.conversations:,}"),
            ("turns a conversation, mean and most", _mean_most(self.turns)),
            ("bytes of all pictures", _bytes(self.picture_bytes.total)),
            ("bytes a picture, mean", _bytes(self.picture_bytes.mean)),
            ("bytes a picture, most", _bytes(self.picture_bytes.greatest)),
        ]  # fmt: skip
        blocks: list[Block] = [Table("Overview", ("", ""), overview), self._texts()]
        if self.longer_side.count:
            note = (
                f"median {self.longer_side.quantile(0.5):,} pixels; shortest shorter side {self.shorter_side.least:,}"
            )
            blocks.append(Bars("Longer side of the pictures, pixels", self.longer_side.bins(SIDES), note))
            blocks.append(Bars("Formats", self.formats.rows(), f"modes: {_named(self.modes)}"))
        if self.turns.count:
            blocks.append(Bars("Turns a conversation", self.turns.even_bins(8)))
        return [*blocks, Bars("Sources", self.sources.rows()), Bars("Licences", self.licences.rows())]

    def _texts(self) -> Table:
        """Numbers, characters and words of each kind of text, as the paper's table 1 counts captions."""
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
        header = ("text", "number", "characters", "words", "median words", "most words", "same as an earlier one")
        return Table("Texts (characters and words: means)", header, rows)

    def smells(self) -> list[str]:
        """What should be looked at before training, in words."""
        found = []
        if self.unreadable.total:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.unreadable.rows(3))
            found.append(f"{self.unreadable.total:,} pictures cannot be read: {reasons}")
        tiny = self.shorter_side.below(SMALLEST_SIDE)
        if tiny:
            found.append(f"{tiny:,} pictures are under {SMALLEST_SIDE} pixels high or wide; are they icons?")
        for kind, captions in self.captions.items():
            if captions.count and captions.repeated > MOST_IDENTICAL * captions.count:
                text, count = captions.commonest
                found.append(
                    f"{captions.repeated / captions.count:.0%} of the {kind} captions are the same as another one; "
                    f"the commonest, {_shortened(text)!r}, comes {count:,} times"
                )
        if self.with_placeholders:
            shown = ", ".join(f"{text!r} in sample {sample_id}" for text, sample_id in self.placeholders.items())
            found.append(
                f"{self.with_placeholders:,} samples have a placeholder left in their text, which would be read as "
                f"words: {shown}. Only {IMAGE_PLACEHOLDER} in a user's turn stands for a picture"
            )
        return found


def _mean_most(numbers: Distribution) -> str:
    return f"{numbers.mean:.2f}, {numbers.greatest:,}"


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "0"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.1f} TB"


def _named(tally: Tally) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in tally.rows(6))


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "..."
