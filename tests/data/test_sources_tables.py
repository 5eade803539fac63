"""CSV, TSV and Parquet: rows come back with text, bytes and order; every faulty row is a reject."""

from __future__ import annotations

import base64
import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import COLOURS, draw

from pargo_ds.data.sources import Outcome, SampleTransform, Table, outcomes
from pargo_ds.data.sources.arrow import table_files
from pargo_ds.errors import SourceError

CAPTION = 'He said "{}",\nthen left; naïvely.'


def read(*paths: Path, **options) -> list[Outcome]:
    source = Table(files=tuple(map(str, paths)), **options)
    return [
        outcome
        for chunk in source.chunks()
        for outcome in outcomes(source, chunk.payload, SampleTransform())
    ]


def image(number: int) -> bytes:
    return draw(COLOURS[number % 6], number % 9)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(10):
        (tmp_path / "images" / f"{number}.png").write_bytes(image(number))
    return tmp_path / "images"


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_text_bytes_and_order_come_back(
    tmp_path: Path, images: Path, ending: str, header: bool
) -> None:
    path = tmp_path / f"t.{ending}"
    with open(path, "w", encoding="utf-8-sig" if header else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="," if ending == "csv" else "\t")
        if header:
            writer.writerow(["key", "file", "text"])
        writer.writerows(
            [f"k{number}", f"{number}.png", CAPTION.format(number)] for number in range(10)
        )
    columns = () if header else ("key", "file", "text")
    found = read(path, image_folder=str(images), image_column="file", caption_column="text", id_column="key",
                 columns=columns, chunk_inputs=4, tsv_quotes=True)  # fmt: skip
    assert [outcome.id for outcome in found] == [f"k{number}" for number in range(10)]
    assert [outcome.sample.images for outcome in found] == [[image(number)] for number in range(10)]
    assert [outcome.sample.captions for outcome in found] == [
        {"coarse": CAPTION.format(n)} for n in range(10)
    ]
    assert [outcome.where["row"] for outcome in found] == list(range(1, 11))


def test_bytes_in_a_csv_are_base64(tmp_path: Path) -> None:
    code = base64.b64encode(image(3)).decode()
    (tmp_path / "t.csv").write_text(
        f"image,detailed\n{code},One.\n{code[:-3]},Two.\n!!,Three.\n,Four.\n"
    )
    found = read(
        tmp_path / "t.csv", image_column="image", images_are="bytes", detailed_column="detailed"
    )
    assert [outcome.kind for outcome in found] == [
        "",
        "image broken",
        "image broken",
        "image missing",
    ]
    assert (found[0].id, found[0].sample.images) == ("t-00000001", [image(3)])
    assert found[0].sample.captions == {"detailed": "One."}


def test_faulty_rows_are_rejects(tmp_path: Path, images: Path) -> None:
    rows = [b"file,text", b"0.png,Good.", b"1.png", b"1.png,a,b", b"1.png,\xff", b"2.png,", b",Lost.", b"../0.png,Up.",
            b'3.png,"never closed', b"4.png,swallowed"]  # fmt: skip
    (tmp_path / "t.csv").write_bytes(b"\n".join(rows))
    found = read(
        tmp_path / "t.csv", image_folder=str(images), image_column="file", caption_column="text"
    )
    assert [outcome.kind for outcome in found] == [
        "", "does not fit", "does not fit", "not UTF-8", "text empty", "image missing", "path leaves its folder",
        "does not fit", "",
    ]  # fmt: skip
    assert found[-1].sample.captions["coarse"] == "swallowed"
    assert [outcome.where["line"] for outcome in found] == [2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_unclosed_quote_does_not_swallow_a_large_table(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pargo_ds.data.sources import delimited

    monkeypatch.setattr(delimited, "MAX_LINE", 1000)
    (tmp_path / "t.csv").write_text('file,text\n0.png,"never closed\n' + "0.png,good\n" * 300)
    found = read(
        tmp_path / "t.csv", image_folder=str(images), image_column="file", caption_column="text"
    )
    assert found[0].kind == "does not fit"
    assert sum(outcome.sample is not None for outcome in found) == 300


@pytest.mark.parametrize("ending", ["tsv", "tab", "tsv.gz"])
def test_a_line_of_a_tsv_is_a_row_and_its_text_stays(
    tmp_path: Path, images: Path, ending: str
) -> None:
    captions = ['"Two dogs play', "A cat sleeps", 'A bird called "Tweety"', '"Quoted start" then text', 'plain 5" tall',
                '"Whole"', "back\\slash", " blanks ", "'"]  # fmt: skip
    lines = [f"{caption}\t{number}.png" for number, caption in enumerate(captions)]
    data = "\r\n".join(lines).encode()
    (tmp_path / f"t.{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    found = read(tmp_path / f"t.{ending}", image_folder=str(images), image_column="file", caption_column="caption",
                 columns=("caption", "file"), chunk_inputs=4)  # fmt: skip
    assert [outcome.sample.captions["coarse"] for outcome in found] == captions
    assert [outcome.sample.images for outcome in found] == [
        [image(number)] for number in range(len(captions))
    ]
    assert found[0].id == "t-00000001"


def test_a_quote_in_a_csv_loses_its_own_line_only(tmp_path: Path, images: Path) -> None:
    lines = [
        "file,text",
        '0.png,"Two',
        "1.png,A cat",
        '2.png,"Tweety" said',
        '3.png,plain 5" tall',
        '4.png,"open',
        '5.png,closed"',
        '6.png,"two',
        'lines, of text"',
        "7.png,last",
        '8.png,"never closed',
        "9.png,end",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = read(
        tmp_path / "t.csv", image_folder=str(images), image_column="file", caption_column="text"
    )
    told = {
        outcome.where["line"]: outcome.kind or outcome.sample.captions["coarse"]
        for outcome in found
    }
    assert told == {
        2: "does not fit", 3: "A cat", 4: "does not fit", 5: 'plain 5" tall', 6: "does not fit", 7: 'closed"',
        8: "two\nlines, of text", 10: "last", 11: "does not fit", 12: "end",
    }  # fmt: skip


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "null", " ", "<NA>"])
def test_the_words_that_programs_write_for_nothing_are_nothing(
    tmp_path: Path, images: Path, word: str
) -> None:
    (tmp_path / "t.csv").write_text(
        f"key,file,text\n{word},0.png,Nano\nk,{word},A\nk,1.png,{word}\n"
    )
    found = read(
        tmp_path / "t.csv",
        image_folder=str(images),
        image_column="file",
        caption_column="text",
        id_column="key",
    )
    assert [outcome.kind for outcome in found] == ["", "image missing", "text empty"]
    assert (found[0].id, found[0].sample.captions) == ("t-00000001", {"coarse": "Nano"})


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        (json.dumps(["One.", "Two."]), ["One.", "Two."]),
        (repr(["One's.", "Two."]), ["One's.", "Two."]),
        ("['One.' \"It's two.\"\n 'Three.']", ["One.", "It's two.", "Three."]),  # an array of numpy
        ("['One.', None]", ["One."]),
        ("[OC] my cat [2019]", ["[OC] my cat [2019]"]),
        ("[1, 2]", ["[1, 2]"]),
    ],
)
def test_several_captions_in_a_cell_are_several_captions(
    tmp_path: Path, images: Path, cell: str, texts: list[str]
) -> None:
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["key", "file", "text"], ["k", "0.png", cell]])
    options = {
        "image_folder": str(images),
        "image_column": "file",
        "caption_column": "text",
        "id_column": "key",
    }
    (first,) = read(tmp_path / "t.csv", **options)
    assert first.sample.captions == {"coarse": texts[0]}
    assert first.sample.meta == ({"other_captions": texts[1:]} if texts[1:] else {})
    every = read(tmp_path / "t.csv", captions="all", **options)
    assert [(o.id, o.sample.captions["coarse"]) for o in every] == list(
        zip(["k", "k-2", "k-3"], texts, strict=False)
    )


def test_utf_16_is_one_error(tmp_path: Path, images: Path) -> None:
    (tmp_path / "t.csv").write_text("file,text\n", encoding="utf-16")
    with pytest.raises(SourceError, match="UTF-16 text; save it as UTF-8"):
        read(
            tmp_path / "t.csv", image_folder=str(images), image_column="file", caption_column="text"
        )


def test_conversation_column_holds_json(tmp_path: Path, images: Path) -> None:
    talk = json.dumps([{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}])
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "talk"], ["0.png", talk], ["0.png", "{"], ["", talk]])
    found = read(
        tmp_path / "t.csv",
        image_folder=str(images),
        image_column="file",
        conversations_column="talk",
    )
    assert [outcome.kind for outcome in found] == ["", "not JSON", ""]
    assert [len(outcome.sample.images) for outcome in (found[0], found[2])] == [1, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"image_column": "pic", "caption_column": "text"},
            "0 columns 'pic', expected one; it has file, text, file",
        ),
        ({"image_column": "file", "caption_column": "text"}, "2 columns 'file'"),
        ({"image_column": "text"}, "name a column of texts"),
        (
            {"image_column": "text", "caption_column": "text", "images_are": "url"},
            "only when --fetch",
        ),
    ],
)
def test_wrong_columns_are_one_error(
    tmp_path: Path, images: Path, options: dict, said: str
) -> None:
    (tmp_path / "t.csv").write_text("file,text,file\n")
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "t.csv", image_folder=str(images), **options)


def test_parquet_text_bytes_and_order_come_back(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    numbers = range(300)
    table = pa.table(
        {
            "number": list(numbers),
            "image": [{"bytes": image(number), "path": None} for number in numbers],
            "text": [CAPTION.format(number) for number in numbers],
            "unused": [1.5] * 300,
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=170)
    found = read(tmp_path / "t.parquet", image_column="image", images_are="bytes", caption_column="text",
                 id_column="number", chunk_inputs=70)  # fmt: skip
    assert [outcome.id for outcome in found] == [str(number) for number in numbers]
    assert all(outcome.sample.images == [image(number)] for number, outcome in enumerate(found))
    assert all(
        outcome.sample.captions == {"coarse": CAPTION.format(n)} for n, outcome in enumerate(found)
    )
    assert [outcome.where["row"] for outcome in found] == list(range(1, 301))


def test_broken_parquet_is_told(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table(
        {"image": [image(number) for number in range(40)], "text": [f"t{n}" for n in range(40)]}
    )
    parquet.write_table(
        table, tmp_path / "t.parquet", row_group_size=20, use_dictionary=False, compression="none"
    )
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    options = {"image_column": "image", "images_are": "bytes", "caption_column": "text"}
    start = (
        parquet.ParquetFile(tmp_path / "t.parquet").metadata.row_group(1).column(0).data_page_offset
    )
    data[start : start + 40] = b"\xff" * 40
    (tmp_path / "t.parquet").write_bytes(data)
    found = read(tmp_path / "t.parquet", **options)
    assert [outcome.kind for outcome in found] == [""] * 20 + ["table damaged"] * 20
    (tmp_path / "t.parquet").write_bytes(data[:-30])
    with pytest.raises(SourceError, match=r"t\.parquet is broken or no Parquet"):
        read(tmp_path / "t.parquet", **options)
    odd = pa.table(
        {"image": [image(0)] * 3, "text": pa.array([b"a", b"\xff", b"c"]).cast(pa.binary())}
    )
    text = pa.Array.from_buffers(pa.string(), 3, odd["text"].chunk(0).buffers())
    parquet.write_table(odd.set_column(1, "text", text), tmp_path / "t.parquet")
    assert [outcome.kind for outcome in read(tmp_path / "t.parquet", **options)] == [
        "",
        "not UTF-8",
        "",
    ]


def test_folders_that_hugging_face_saves_are_read(tmp_path: Path, images: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cauldron = [
        {
            "images": [{"bytes": image(n), "path": None}],
            "texts": [{"user": f"{n}?", "assistant": "Yes.", "source": "x"}],
        }
        for n in range(5)
    ]
    cauldron.append({"images": [{"bytes": None, "path": "7.png"}], "texts": cauldron[0]["texts"]})
    saved = datasets.Dataset.from_list(cauldron)
    saved.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "both"))
    options = {
        "image_column": "images",
        "images_are": "bytes",
        "conversations_column": "texts",
        "chunk_inputs": 2,
    }
    found = read(
        *map(Path, table_files([str(tmp_path / "saved")])), image_folder=str(images), **options
    )
    assert [outcome.sample.images for outcome in found] == [[image(n)] for n in (0, 1, 2, 3, 4, 7)]
    assert [outcome.sample.turns[0]["content"] for outcome in found] == [
        f"<image>\n{n}?" for n in (0, 1, 2, 3, 4, 0)
    ]
    assert [outcome.where["row"] for outcome in found] == [1, 2, 3] * 2
    with pytest.raises(
        SourceError, match=r"several splits; name those that are wanted: .*both/train, .*both/test"
    ):
        table_files([str(tmp_path / "both")])
    with pytest.raises(SourceError, match=r"without state.json.*such as .*/\*.parquet"):
        table_files([str(images)])


def test_a_damaged_arrow_file_is_told(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    batch = pa.record_batch(
        {"image": [image(n) for n in range(4)], "text": ["abcd", "efgh", "ijkl", "mnop"]}
    )
    options = {"image_column": "image", "images_are": "bytes", "caption_column": "text"}
    for kind in (pa.ipc.new_stream, pa.ipc.new_file):
        with kind(str(tmp_path / "t.arrow"), batch.schema) as writer:
            writer.write_batch(batch)
        data = (tmp_path / "t.arrow").read_bytes()
        assert [outcome.sample.images for outcome in read(tmp_path / "t.arrow", **options)] == [
            [image(n)] for n in range(4)
        ]
        (tmp_path / "t.arrow").write_bytes(data[: len(data) // 2])
        with pytest.raises(SourceError, match=r"t\.arrow is broken or no Arrow file"):
            read(tmp_path / "t.arrow", **options)
        offsets = np.array([0, 4, 8, 12, 16], np.int32).tobytes()
        assert data.count(offsets) == 1
        (tmp_path / "t.arrow").write_bytes(
            data.replace(offsets, np.array([0, 4, 8, 1 << 30, 16], np.int32).tobytes())
        )
        assert [outcome.kind for outcome in read(tmp_path / "t.arrow", **options)] == [
            "table damaged"
        ] * 4


def test_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match="pip install pyarrow"):
        read(
            tmp_path / "t.parquet", image_column="image", images_are="bytes", caption_column="text"
        )
