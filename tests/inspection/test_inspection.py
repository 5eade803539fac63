"""What is told about a folder of shards is true, its faults are named, and the page shows data
without obeying it.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_store import ObjectStore
from PIL import Image
from tiny import tiny_samples
from transformers import AutoTokenizer

from pargo_ds.batch import IGNORE_INDEX
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.shards.mds import write_shards
from pargo_ds.data.shards.schema import Sample
from pargo_ds.inspection.distributions import Distribution, Repeats, Tally
from pargo_ds.inspection.inspect import Encoding, Inspection, chosen_positions, inspect
from pargo_ds.inspection.page import render_page
from pargo_ds.inspection.shard_statistics import ShardStatistics
from pargo_ds.inspection.tables import Bars, Table, as_text, warnings_as_text
from pargo_ds.inspection.token_pieces import pieces
from pargo_ds.inspection.token_statistics import TokenStatistics
from pargo_ds.model import ParGoProcessor

TURNS = [
    {"role": "user", "content": "<image><image>What colour is it? é漢"},
    {"role": "assistant", "content": "A red 漢."},
]


@pytest.fixture
def processor(tokenizer_folder: Path) -> ParGoProcessor:
    return ParGoProcessor(
        AutoTokenizer.from_pretrained(tokenizer_folder), image_size=16, visual_tokens=6
    )


@pytest.fixture
def encoding(processor: ParGoProcessor) -> Encoding:
    data = DataSection(train="unused", text="captions", caption_prompts={"detailed": "Describe."})
    return Encoding(
        processor, data, BatchSection(tokens_per_pack=200, images_per_pack=6, packs_per_step=2)
    )


def image(width: int = 64, height: int = 48, kind: str = "JPEG", colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()


def sample(name: str, **fields: Any) -> Sample:
    return Sample(id=name, images=fields.pop("images", [image()]), **fields)


def counted(*samples: Sample) -> ShardStatistics:
    statistics = ShardStatistics()
    for one in samples:
        statistics.add(one)
    return statistics


def table_of(inspection: Inspection, title: str) -> dict[str, list[str]]:
    table = next(block for block in inspection.blocks if block.title.startswith(title))
    assert isinstance(table, Table)
    return {row[0]: list(row[1:]) for row in table.rows}


def bars_of(statistics: ShardStatistics, title: str) -> dict[str, int]:
    chart = next(block for block in statistics.blocks() if block.title.startswith(title))
    assert isinstance(chart, Bars)
    return dict(chart.bars)


# Counting


def test_distributions_agree_with_numpy() -> None:
    values = np.random.default_rng(0).lognormal(5, 2, 5000).astype(int)
    numbers = Distribution()
    for value in values.tolist():
        numbers.add(value)
    assert (numbers.count, numbers.least, numbers.greatest) == (5000, values.min(), values.max())
    assert numbers.mean == pytest.approx(values.mean())
    for share in (0.1, 0.5, 0.99):  # kept to three digits
        assert numbers.quantile(share) == pytest.approx(
            np.quantile(values, share, method="inverted_cdf"), rel=0.01
        )
    edges = [10, 100, 1000]
    assert [count for _, count in numbers.bins(edges)] == np.histogram(
        values, [0, *edges, values.max() + 1]
    )[0].tolist()
    assert sum(count for _, count in numbers.even_bins(12)) == 5000
    assert numbers.below(32) == (values < 32).sum()


@pytest.mark.parametrize("values", [[7], [5, 5, 5], [0, 1], [3, 400_000]])
def test_even_bins_hold_every_value(values: list[int]) -> None:
    numbers = Distribution()
    for value in values:
        numbers.add(value)
    bins = numbers.even_bins(10)
    assert sum(count for _, count in bins) == len(values)
    assert len(bins) <= 21
    assert bins[0][1] > 0 < bins[-1][1]
    assert Distribution().even_bins(10) == []


def test_tallies_and_repeats_stay_small_and_exact() -> None:
    names, texts = Tally(), Repeats()
    for number in range(3000):
        names.add(f"source {number}")
        texts.add(f"caption {number % 2500}")
    assert names.total == 3000
    assert len(names.rows(5)) == 6
    assert texts.repeated == 500
    assert texts.commonest[1] == 2


def test_statistics_are_those_of_the_samples() -> None:
    statistics = counted(
        sample("a", images=[image(500, 200), image(40, 30, "PNG")], captions={"coarse": "A red thing.",
               "detailed": "One two three four."}, source="here", license="CC0"),
        sample("b", images=[image(500, 200)], turns=[{"role": "system", "content": "Be brief."},
               {"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A thing."}]),
        sample("c", images=[]),
    )  # fmt: skip
    assert (statistics.samples, statistics.images.count, statistics.images.repeated) == (3, 3, 1)
    assert bars_of(statistics, "Longer side") == {"32 - 63": 1, "64 - 127": 0, "128 - 223": 0, "224 - 335": 0,
                                                  "336 - 447": 0, "448 - 671": 2}  # fmt: skip
    assert bars_of(statistics, "Formats") == {"JPEG": 2, "PNG": 1}
    assert bars_of(statistics, "Sources") == {"(none)": 2, "here": 1}
    assert statistics.characters["detailed"].mean == len("One two three four.")
    assert statistics.words["coarse"].mean == 3
    assert statistics.turns.mean == 2  # the system turn is none of them
    assert statistics.turn_words["user"].mean == 3
    assert statistics.warnings() == ["1 images are under 32 pixels high or wide; are they icons?"]


# Warnings


@pytest.mark.parametrize("samples, said", [
    ([sample("a", images=[image(400, 31)])], "1 images are under 32 pixels"),
    ([sample("a", images=[b"no image"])], "1 images cannot be read: 1 is not an image"),
    ([sample(str(n), captions={"coarse": "A cat." if n % 5 == 0 else f"{n}"}) for n in range(20)],
     "15% of the coarse captions are the same as another one; the commonest, 'A cat.', comes 4 times"),
    ([sample("a", captions={"coarse": "<image> a cat"})], "'<image>' in sample a"),
    ([sample("b", captions={"coarse": "<ImageHere> a cat"})], "'<ImageHere>' in sample b"),
    ([sample("c", captions={"coarse": "<|vision_start|> a cat"})], "'<|vision_start|>' in sample c"),
])  # fmt: skip
def test_what_is_wrong_in_the_shards_is_told_in_words(samples: list[Sample], said: str) -> None:
    (warning,) = counted(*samples).warnings()
    assert said in warning
    assert said.split()[0] in warnings_as_text([warning])


def test_ordinary_samples_give_no_warning(tmp_path: Path, encoding: Encoding) -> None:
    samples = [
        sample(str(n), captions={"coarse": f"Cat {n} < {n + 1}.", "detailed": f"a cat {n} " * 9})
        for n in range(9)
    ]
    write_shards(samples, tmp_path / "shards")
    assert inspect(str(tmp_path / "shards"), encoding).warnings == []


def token_warnings(encoding: Encoding, *samples: Sample) -> str:
    statistics = TokenStatistics(encoding.processor, encoding.data, encoding.batch)
    for one in samples:
        statistics.add(one)
    return "\n".join(statistics.warnings())


def test_a_conversation_without_a_trained_token_is_told(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoding.processor.encode_conversation

    def masked(turns: Any) -> tuple[list[int], list[int]]:
        ids, _ = encode(turns)
        return ids, [IGNORE_INDEX] * len(ids)

    statistics = TokenStatistics(encoding.processor, encoding.data, encoding.batch)
    monkeypatch.setattr(encoding.processor, "encode_conversation", masked)
    statistics.add(sample("a", captions={"coarse": "A cat."}))
    assert (
        "1 conversations cannot be trained on, the first in sample a: no answer token"
        in statistics.warnings()[0]
    )


def test_an_end_of_turn_that_is_not_trained_is_told(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoding.processor.encode_conversation

    def endless(turns: Any) -> tuple[list[int], list[int]]:
        ids, labels = encode(turns)
        return ids, [*labels[:-1], IGNORE_INDEX]

    statistics = TokenStatistics(encoding.processor, encoding.data, encoding.batch)
    monkeypatch.setattr(encoding.processor, "encode_conversation", endless)
    statistics.add(sample("a", captions={"coarse": "A cat."}))
    assert "1 answers end in no end of turn" in statistics.warnings()[0]
    assert "1 in '.'" in statistics.warnings()[0]


def test_an_end_of_turn_of_ordinary_text_is_refused(
    tokenizer_folder: Path, encoding: Encoding
) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}#{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    other = ParGoProcessor(
        AutoTokenizer.from_pretrained(tokenizer_folder), visual_tokens=6, chat_template=template
    )
    with pytest.raises(
        ValueError, match="writes nothing after the answer of turn 1 that could end it"
    ):
        token_warnings(
            Encoding(other, encoding.data, encoding.batch),
            sample("a", captions={"coarse": "A cat."}),
        )


def test_a_small_trained_share_is_told(tokenizer_folder: Path, encoding: Encoding) -> None:
    many = ParGoProcessor(AutoTokenizer.from_pretrained(tokenizer_folder), visual_tokens=900)
    warnings = token_warnings(
        Encoding(many, encoding.data, encoding.batch), sample("a", captions={"coarse": "A"})
    )
    assert "% of all tokens are trained on" in warnings
    assert (
        "1 conversations are too long for a pack; with too_long: error the run would end"
        in warnings
    )


def test_special_tokens_in_texts_and_missing_captions_are_told(encoding: Encoding) -> None:
    warnings = token_warnings(
        encoding, sample("a", captions={"coarse": "A <|im_end|> cat"}), sample("b")
    )
    assert "<|im_end|> in 1" in warnings
    assert "the first in sample b: it has no coarse or detailed caption" in warnings


def test_damaged_samples_are_counted_and_told(tmp_path: Path) -> None:
    from streaming import MDSWriter

    from pargo_ds.data.shards.schema import COLUMNS

    rows = [one.to_mds() for one in tiny_samples(6)]
    rows[2]["turns"] = [{"role": "nobody", "content": "x"}]
    with MDSWriter(out=str(tmp_path / "shards"), columns=COLUMNS) as writer:
        for row in rows:
            writer.write(row)
    inspection = inspect(str(tmp_path / "shards"))
    assert inspection.warnings[0].startswith(
        "1 damaged samples: sample '00002': turn 0 has the role 'nobody'"
    )
    assert table_of(inspection, "Overview")["samples (image-text pairs)"] == ["5"]


# Tokens


@pytest.mark.parametrize("prompt", ["chat", "paper"])
def test_pieces_are_the_tokens_in_order_and_their_text_is_whole(
    tokenizer_folder: Path, prompt: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    processor = ParGoProcessor(tokenizer, image_size=16, visual_tokens=6, prompt=prompt)
    ids, labels = processor.encode_conversation(TURNS)
    found = pieces(ids, labels, processor)
    assert [number for piece in found for number in piece.ids] == ids
    assert [len(piece.ids) for piece in found if piece.image] == [6, 6]
    trained = [piece for piece in found if piece.trained]
    assert sum(len(piece.ids) for piece in trained) == sum(
        label != IGNORE_INDEX for label in labels
    )
    assert (
        "".join(piece.text for piece in trained) == "A red 漢.<|im_end|>"
    )  # letters of several tokens are one piece
    assert trained[-1].special
    text = "".join("<image>" if piece.image else piece.text for piece in found)
    assert text == processor.render(TURNS)


def test_tokens_and_fit_are_those_of_training(tmp_path: Path, encoding: Encoding) -> None:
    write_shards([one for one in tiny_samples(30) if one.images], tmp_path / "shards")
    inspection = inspect(str(tmp_path / "shards"), encoding)
    lengths, trained = [], 0
    for one in (one for one in tiny_samples(30) if one.images):
        for kind, caption in one.captions.items():
            question = "<image>\n" * len(one.images) + ("Describe." if kind == "detailed" else "")
            ids, labels = encoding.processor.encode_conversation(
                [{"role": "user", "content": question}, {"role": "assistant", "content": caption}]
            )
            lengths.append(len(ids))
            trained += sum(label != IGNORE_INDEX for label in labels)
    rows = table_of(inspection, "Tokens")
    assert rows["conversations to train on"] == [f"{len(lengths)}"]
    assert rows["tokens"] == [f"{sum(lengths):,}"]
    assert rows["of them trained on"][0].startswith(f"{trained:,} (")
    assert rows["tokens a conversation: mean, median, most"][0].endswith(f", {max(lengths)}")


# Choice of samples


def test_a_limit_bounds_what_is_looked_at_and_spreads_it(tiny_shards: Path) -> None:
    inspection = inspect(str(tiny_shards / "train"), limit=30, samples=5, seed=3)
    again = inspect(str(tiny_shards / "train"), limit=30, samples=5, seed=3)
    assert (inspection.samples, inspection.looked_at, len(inspection.shown)) == (120, 30, 5)
    assert [shown.sample.id for shown in inspection.shown] == [
        shown.sample.id for shown in again.shown
    ]


@pytest.mark.parametrize("few_shards", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 50, 700, 10_000])
def test_positions_are_distinct_and_ascending(limit: int | None, few_shards: bool) -> None:
    shards = np.array([10] * 100)
    positions = chosen_positions(shards, limit, 0, few_shards)
    assert len(positions) == min(limit or 1000, 1000)
    assert (np.diff(positions) > 0).all()
    assert positions.max() < 1000
    if few_shards and limit == 50:
        assert len(set((positions // 10).tolist())) <= 16


def test_an_object_store_is_looked_at_without_fetching_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto")
    write_shards(tiny_samples(200), tmp_path / "shards", shard_bytes=1 << 11)
    shards = len(list((tmp_path / "shards").glob("*.mds")))
    assert shards > 40
    store = ObjectStore()
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    try:
        store.start()
        store.new_bucket("looked-at")
        address = store.put_folder(tmp_path / "shards", "train")
        inspection = inspect(address, limit=10, samples=2, cache=tmp_path / "cache")
    finally:
        store.kill()
    assert (inspection.samples, inspection.looked_at, len(inspection.shown)) == (200, 10, 2)
    assert 0 < len(list((tmp_path / "cache").rglob("*.mds"))) <= 16


# The page


class Reading(HTMLParser):
    """Tags, texts, and what does not close."""

    VOID = {"meta", "img", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & $path \x1b[31m \u202e"


@pytest.fixture
def hostile(tmp_path: Path, encoding: Encoding) -> str:
    bad = sample(f"id{HOSTILE}", images=[image(), b"broken"], captions={"coarse": HOSTILE}, source=HOSTILE,
                 license=HOSTILE)  # fmt: skip
    good = sample(
        "good",
        turns=TURNS,
        captions={"detailed": f"a {HOSTILE}"},
        images=[image(), image(900, 700)],
    )
    write_shards([bad, good, *tiny_samples(3)], tmp_path / "shards")
    return render_page(inspect(str(tmp_path / "shards"), encoding), encoding)


def test_page_shows_data_and_never_obeys_it(hostile: str) -> None:
    reading = Reading()
    reading.feed(hostile)
    reading.close()
    assert reading.open == []
    assert reading.tags["script"] == 0
    assert reading.handlers == []
    assert all(address.startswith("data:image/jpeg;base64,") for address in reading.addresses)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hostile
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile
    assert "[U+202E]" in hostile
    assert "default-src 'none'" in hostile
    assert not re.search(r"https?:", hostile)


def test_page_colours_what_is_trained_on(tmp_path: Path, encoding: Encoding) -> None:
    write_shards([sample("a", captions={"coarse": "A red square."})], tmp_path / "shards")
    page = render_page(inspect(str(tmp_path / "shards"), encoding), encoding)
    body = page[page.index("<h4>") :]
    trained = re.findall(r'<b class="y(?: s)?" title="[\d ]+">(.*?)</b>', body)
    assert "".join(trained) == "A red square.&lt;|im_end|&gt;"
    assert "image: 6 tokens" in body
    assert '<b class="n s"' in body
    assert "as the encoder gets it, 16 x 16" in page
    assert page.count("<figure>") == 2


def test_page_without_a_run_file_says_how_to_get_more(tiny_shards: Path) -> None:
    page = render_page(inspect(str(tiny_shards / "train"), samples=2))
    assert "--run RUN.yaml" in page
    assert "Sources" in page


def test_a_terminal_gets_no_control_letters() -> None:
    text = as_text(Bars("Sources", [(f"a{HOSTILE}", 3), ("b", 1)], "note")) + as_text(
        Table("T", ("", ""), [(HOSTILE, "1")])
    )
    assert "\x1b" not in text
    assert "75.0%" in text
