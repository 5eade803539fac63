"""Count what training makes of the samples of a folder: the tokens of each conversation, the
trained tokens, and how many conversations fit into a pack.
"""

from __future__ import annotations

from typing import Any

from pargo_ds.batch import IGNORE_INDEX
from pargo_ds.data.conversation import conversations_of, encode_text
from pargo_ds.data.shards.schema import Sample
from pargo_ds.data_sections import BatchSection, DataSection
from pargo_ds.errors import SampleError
from pargo_ds.inspection.distributions import MOST_NAMES, Distribution, Tally
from pargo_ds.inspection.tables import Bars, Block, Table
from pargo_ds.inspection.token_pieces import answer_ends

SMALLEST_TRAINED_SHARE = 0.02


class TokenStatistics:
    """Counts over the conversations that `data` makes of samples, encoded by `processor` (a
    ParGoProcessor).
    """

    def __init__(self, processor: Any, data: DataSection, batch: BatchSection) -> None:
        self.processor, self.data, self.batch = processor, data, batch
        self.tokens, self.trained, self.images = Distribution(), Distribution(), Distribution()
        self.too_long = 0
        self.faults = Tally()
        self.first_fault: dict[str, str] = {}
        self.odd_ends, self.special_in_text = Tally(), Tally()
        self._stop_ids = set(processor.stop_token_ids)
        self._special = processor.control_tokens

    def add(self, sample: Sample) -> None:
        """Count every conversation of a sample. A conversation that cannot be encoded is counted as
        a fault, with its reason.
        """
        try:
            conversations = conversations_of(sample, self.data)
        except SampleError as error:
            self._fault(sample, error)
            return
        for turns in conversations:
            try:
                ids, labels = encode_text(sample, turns, self.processor)
            except SampleError as error:
                self._fault(sample, error)
                continue
            self._count(ids, labels, len(sample.images))
            for token in self._special:
                if any(token in turn["content"] for turn in turns):
                    self.special_in_text.add(token)

    def _fault(self, sample: Sample, error: SampleError) -> None:
        reason = str(error).removeprefix(f"sample {sample.id}: ")
        self.faults.add(reason)
        if len(self.first_fault) < MOST_NAMES:
            self.first_fault.setdefault(reason, sample.id)

    def _count(self, ids: list[int], labels: list[int], images: int) -> None:
        self.tokens.add(len(ids))
        self.images.add(images)
        self.trained.add(sum(label != IGNORE_INDEX for label in labels[1:]))
        self.too_long += (
            len(ids) > self.batch.tokens_per_pack or images > self.batch.images_per_pack
        )
        for end in answer_ends(ids, labels):
            if end not in self._stop_ids:
                self.odd_ends.add(repr(self.processor.decode([end])))

    @property
    def trained_share(self) -> float:
        """The share of all tokens that is trained on; 0 if there are none."""
        if not self.tokens.total:
            return 0.0
        return self.trained.total / self.tokens.total

    def blocks(self) -> list[Block]:
        """Return tables and histograms in the order in which they are shown."""
        if not self.tokens.count:
            return []
        budget = self.batch.tokens_per_pack
        seen = self.images.total * self.processor.visual_tokens
        rows = [
            ("conversations to train on", f"{self.tokens.count:,}"),
            ("tokens", f"{self.tokens.total:,}"),
            ("of them visual tokens", f"{seen:,} ({seen / self.tokens.total:.1%})"),
            ("of them trained on", f"{self.trained.total:,} ({self.trained_share:.1%})"),
            ("tokens a conversation: mean, median, most",
             f"{self.tokens.mean:.1f}, {self.tokens.quantile(0.5):,}, {self.tokens.greatest:,}"),
            ("tokens trained on, the same", f"{self.trained.mean:.1f}, {self.trained.quantile(0.5):,}, "
             f"{self.trained.greatest:,}"),
            (f"conversations a pack of {budget:,} tokens", f"{self._conversations_a_pack():.1f}"),
            (f"too long for a pack (or over {self.batch.images_per_pack} images)", f"{self.too_long:,}"),
        ]  # fmt: skip
        return [
            Table("Tokens", ("", ""), rows),
            Bars(
                "Tokens a conversation, visual tokens included",
                self.tokens.even_bins(12),
                f"a pack holds {budget:,}",
            ),
            Bars("Tokens trained on, a conversation", self.trained.even_bins(12)),
        ]

    def _conversations_a_pack(self) -> float:
        """The number of conversations that fit into a pack on average, by their tokens and
        images.
        """
        by_tokens = self.batch.tokens_per_pack / self.tokens.mean
        if not self.images.mean:
            return by_tokens
        return min(by_tokens, self.batch.images_per_pack / self.images.mean)

    def warnings(self) -> list[str]:
        """Return sentences about what people should look at before training."""
        found = []
        for reason, count in self.faults.rows(3):
            first = ""
            if reason in self.first_fault:
                first = f", the first in sample {self.first_fault[reason]}"
            found.append(f"{count:,} conversations cannot be trained on{first}: {reason}")
        if self.tokens.count and self.trained_share < SMALLEST_TRAINED_SHARE:
            found.append(
                f"only {self.trained_share:.1%} of all tokens are trained on (expected {SMALLEST_TRAINED_SHARE:.0%} or "
                "more): the texts are very short beside the visual tokens, or the template hides the answers"
            )
        if self.odd_ends.total:
            shown = ", ".join(f"{count:,} in {token}" for token, count in self.odd_ends.rows(3))
            found.append(
                f"{self.odd_ends.total:,} answers end in no end of turn, so the model would not learn to stop: {shown}"
            )
        if self.special_in_text.total:
            rows = self.special_in_text.rows(5)
            shown = ", ".join(f"{token} in {count:,}" for token, count in rows)
            found.append(
                f"control tokens of the tokenizer stand in texts, where they are read as plain text: {shown}"
            )
        if self.too_long:
            fate = "the run leaves them out"
            if self.data.too_long == "error":
                fate = "the run would end with an error"
            found.append(f"{self.too_long:,} conversations are too long for a pack; with too_long: "
                         f"{self.data.too_long} {fate}")  # fmt: skip
        return found
