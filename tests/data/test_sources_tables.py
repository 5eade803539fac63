"""CSV, TSV and Parquet: rows come back with text, bytes and order; every faulty row is a reject."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pytest
from tiny import COLOURS, draw

from pargo_ds.data.sources import Finish, Outcome, SourceError, Table, outcomes

CAPTION = 'He said "{}",\nthen left; naïvely.'


def read(*paths: Path, **options) -> list[Outcome]:
    source = Table(files=tuple(map(str, paths)), **options)
    return [outcome for chunk in source.chunks() for outcome in outcomes(source, chunk.payload, Finish())]


def picture(number: int) -> bytes:
    return draw(COLOURS[number % 6], number % 9)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(picture(number))
    return tmp_path / "pictures"


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_text_bytes_and_order_come_back(tmp_path: Path, pictures: Path, ending: str, header: bool) -> None:
    path = tmp_path / f"t.{ending}"
    with open(path, "w", encoding="utf-8-sig" if header else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="," if ending == "csv" else "\t")
        if header:
            writer.writerow(["key", "file", "text"])
        writer.writerows([f"k{number}", f"{number}.png", CAPTION.format(number)] for number in range(10))
    columns = () if header else ("key", "file", "text")
    found = read(path, pictures=str(pictures), image_column="file", caption_column="text", id_column="key",
                 columns=columns, chunk_inputs=4)  # fmt: skip
    assert [outcome.id for outcome in found] == [f"k{number}" for number in range(10)]
    assert [outcome.sample.images for outcome in found] == [[picture(number)] for number in range(10)]
    assert [outcome.sample.captions for outcome in found] == [{"coarse": CAPTION.format(n)} for n in range(10)]
    assert [outcome.where["row"] for outcome in found] == list(range(1, 11))


def test_bytes_in_a_csv_are_base64(tmp_path: Path) -> None:
    code = base64.b64encode(picture(3)).decode()
    (tmp_path / "t.csv").write_text(f"image,detailed\n{code},One.\n{code[:-3]},Two.\n!!,Three.\n,Four.\n")
    found = read(tmp_path / "t.csv", image_column="image", images_are="bytes", detailed_column="detailed")
    assert [outcome.kind for outcome in found] == ["", "picture broken", "picture broken", "picture missing"]
    assert (found[0].id, found[0].sample.images) == ("t-00000001", [picture(3)])
    assert found[0].sample.captions == {"detailed": "One."}


def test_faulty_rows_are_rejects(tmp_path: Path, pictures: Path) -> None:
    rows = [b"file,text", b"0.png,Good.", b"1.png", b"1.png,a,b", b"1.png,\xff", b"2.png,", b",Lost.", b"../0.png,Up.",
            b'3.png,"never closed', b"4.png,swallowed"]  # fmt: skip
    (tmp_path / "t.csv").write_bytes(b"\n".join(rows))
    found = read(tmp_path / "t.csv", pictures=str(pictures), image_column="file", caption_column="text")
    assert [outcome.kind for outcome in found] == [
        "", "does not fit", "does not fit", "not UTF-8", "text empty", "picture missing", "path leaves its folder", "",
    ]  # fmt: skip
    assert "swallowed" in found[-1].sample.captions["coarse"]


def test_unclosed_quote_does_not_swallow_a_large_table(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pargo_ds.data.sources import tables

    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    (tmp_path / "t.csv").write_text('file,text\n0.png,"never closed\n' + "0.png,good\n" * 300)
    found = read(tmp_path / "t.csv", pictures=str(pictures), image_column="file", caption_column="text")
    assert found[0].kind == "does not fit"
    assert sum(outcome.sample is not None for outcome in found) > 190


def test_conversation_column_holds_json(tmp_path: Path, pictures: Path) -> None:
    talk = json.dumps([{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}])
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "talk"], ["0.png", talk], ["0.png", "{"], ["", talk]])
    found = read(tmp_path / "t.csv", pictures=str(pictures), image_column="file", conversations_column="talk")
    assert [outcome.kind for outcome in found] == ["", "not JSON", ""]
    assert [len(outcome.sample.images) for outcome in (found[0], found[2])] == [1, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_column": "pic", "caption_column": "text"}, "0 columns 'pic', expected one; it has file, text, file"),
        ({"image_column": "file", "caption_column": "text"}, "2 columns 'file'"),
        ({"image_column": "text"}, "name a column of texts"),
        ({"image_column": "text", "caption_column": "text", "images_are": "url"}, "only when --fetch"),
    ],
)
def test_wrong_columns_are_one_error(tmp_path: Path, pictures: Path, options: dict, said: str) -> None:
    (tmp_path / "t.csv").write_text("file,text,file\n")
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "t.csv", pictures=str(pictures), **options)


def test_parquet_text_bytes_and_order_come_back(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    numbers = range(300)
    table = pa.table(
        {
            "number": list(numbers),
            "image": [{"bytes": picture(number), "path": None} for number in numbers],
            "text": [CAPTION.format(number) for number in numbers],
            "unused": [1.5] * 300,
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=170)
    found = read(tmp_path / "t.parquet", image_column="image", images_are="bytes", caption_column="text",
                 id_column="number", chunk_inputs=70)  # fmt: skip
    assert [outcome.id for outcome in found] == [str(number) for number in numbers]
    assert all(outcome.sample.images == [picture(number)] for number, outcome in enumerate(found))
    assert all(outcome.sample.captions == {"coarse": CAPTION.format(n)} for n, outcome in enumerate(found))
    assert [outcome.where["row"] for outcome in found] == list(range(1, 301))


def test_broken_parquet_is_told(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [picture(number) for number in range(40)], "text": [f"t{n}" for n in range(40)]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=20, use_dictionary=False, compression="none")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    options = {"image_column": "image", "images_are": "bytes", "caption_column": "text"}
    start = parquet.ParquetFile(tmp_path / "t.parquet").metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    (tmp_path / "t.parquet").write_bytes(data)
    found = read(tmp_path / "t.parquet", **options)
    assert [outcome.kind for outcome in found] == [""] * 20 + ["table damaged"] * 20
    (tmp_path / "t.parquet").write_bytes(data[:-30])
    with pytest.raises(SourceError, match=r"t\.parquet is broken or no Parquet"):
        read(tmp_path / "t.parquet", **options)
    odd = pa.table({"image": [picture(0)] * 3, "text": pa.array([b"a", b"\xff", b"c"]).cast(pa.binary())})
    text = pa.Array.from_buffers(pa.string(), 3, odd["text"].chunk(0).buffers())
    parquet.write_table(odd.set_column(1, "text", text), tmp_path / "t.parquet")
    assert [outcome.kind for outcome in read(tmp_path / "t.parquet", **options)] == ["", "not UTF-8", ""]


def test_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match="pip install pyarrow"):
        read(tmp_path / "t.parquet", image_column="image", images_are="bytes", caption_column="text")
