"""Odd files of people who do this work, each of a kind of its own: read as meant, or told."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import COLOURS, draw

from pargo_ds.data.sources import Llava, Outcome, SampleTransform, Table, outcomes
from pargo_ds.errors import SourceError

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(draw(COLOURS[number], number))
    return folder


def told(source: Llava | Table) -> list[str]:
    """The kind of each reject, "" for a sample."""
    return [outcome.kind for outcome in found(source)]


def found(source: Llava | Table) -> list[Outcome]:
    return [
        outcome
        for chunk in source.chunks()
        for outcome in outcomes(source, chunk.payload, SampleTransform())
    ]


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"image": float("nan"), "conversations": TALK}, ""),  # json.dumps of a pandas row
        ({"image": "0.png", "conversations": json.dumps(TALK)}, ""),  # JSON in JSON
        ({"image": "0.png", "conversations": "[{"}, "not JSON"),
        (
            {"image": {"bytes": base64.b64encode(draw("red", 0)).decode()}, "conversations": TALK},
            "",
        ),
        (
            {
                "image": "data:image/png;base64," + base64.b64encode(draw("red", 0)).decode(),
                "conversations": TALK,
            },
            "",
        ),
        ({"image": "data:image/png;base64,!!", "conversations": TALK}, "image broken"),
        ({"image": " 0.png ", "conversations": TALK}, ""),
        ({"image": [["0.png"]], "conversations": TALK}, "image missing"),
        (
            {
                "image": "0.png",
                "conversations": [{**TALK[0], "role": "user"}, {**TALK[1], "role": "assistant"}],
            },
            "",
        ),
        (
            {"image": "0.png", "conversations": [{**TALK[0], "role": "assistant"}, TALK[1]]},
            "two values",
        ),
        ({"image": "0.png", "conversations": [TALK[0], {"from": "gpt", "value": 7}]}, "text empty"),
        (
            {"image": "0.png", "conversations": [*TALK, {"from": "system", "value": "Be."}, *TALK]},
            "does not fit",
        ),
        ({"image": "0.png", "conversations": [TALK[0], *TALK]}, "does not fit"),
        ({"image": "0.png", "conversations": [TALK[0], None]}, "does not fit"),
        ({"image": "0.png", "images": ["0.png"], "conversations": TALK}, ""),
        ({"image": "0.png", "conversations": {"0": TALK[0]}}, "text empty"),
        ({"image": "0.PNG", "conversations": TALK}, "image missing"),
        ({"IMAGE": "0.png", "conversations": TALK}, ""),
        (
            {
                "image": "0.png",
                "conversations": [TALK[0], {"from": "gpt", "value": "\ufeff\u200b \0"}],
            },
            "text empty",
        ),
        (
            {
                "image": "0.png",
                "conversations": [TALK[0], {"from": "gpt", "value": "\u200b\u2764\ufe0f"}],
            },
            "",
        ),
    ],
)
def test_odd_entries(tmp_path: Path, images: Path, entry: dict[str, Any], kind: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    (outcome,) = found(Llava(files=(str(tmp_path / "a.json"),), image_folder=str(images)))
    assert outcome.kind == kind, outcome.reason


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b'{"conversations": %s}\r\n{"conversations": %s}\r\n', ["", ""]),  # Windows line ends
        (
            b'{"conversations": %s},\n{"conversations": %s},\n',
            ["not JSON"] * 2,
        ),  # an array without its brackets
        (b'{"conversations": %s}{"conversations": %s}\n', ["not JSON"]),  # two objects on a line
        (b'{"conversations": %s}\n{"conversations": %s', ["", "not JSON"]),  # cut
        (
            b'{"conversations": %s}\x1e\n{"conversations": %s}\n',
            ["not JSON", ""],
        ),  # record separators
    ],
)
def test_odd_lines(tmp_path: Path, data: bytes, kinds: list[str]) -> None:
    talk = json.dumps(TALK).encode()
    (tmp_path / "a.jsonl").write_bytes(data % (talk, talk))
    assert told(Llava(files=(str(tmp_path / "a.jsonl"),))) == kinds


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"file,text\r0.png,One.\r1.png,Two.\r", "new-line character"),  # line ends of old Macs
        (b"file;text\n0.png;One.\n", "0 columns 'file', .*; it has file;text"),
        ("file,text\n".encode("utf-16"), "UTF-16"),
        (b'"file,text\n0.png,One.\n', "line 1: the row cannot be read"),
    ],
)
def test_odd_tables_are_one_error(tmp_path: Path, images: Path, data: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(SourceError, match=said):
        told(
            Table(
                files=(str(tmp_path / "t.csv"),),
                image_folder=str(images),
                image_column="file",
                caption_column="text",
            )
        )


def test_odd_rows(tmp_path: Path, images: Path) -> None:
    rows = [
        "file,text",
        "0.png, spaced ",
        " 1.png,One.",
        "2.png,a\0b",
        '3.png,"two\r\nlines"',
        "3.png,x,",
        ",,",
    ]
    (tmp_path / "t.csv").write_bytes("\r\n".join(rows).encode())
    source = Table(
        files=(str(tmp_path / "t.csv"),),
        image_folder=str(images),
        image_column="file",
        caption_column="text",
    )
    assert told(source) == ["", "", "", "", "does not fit", "does not fit"]


def test_odd_image_files(tmp_path: Path, images: Path) -> None:
    """What telephones, scanners and web servers leave behind."""
    for name, kind in (
        ("telephone.jpg", "MPO"),
        ("moving.gif", "GIF"),
        ("moving.webp", "WEBP"),
        ("pages.tif", "TIFF"),
    ):
        first, second = (Image.new("RGB", (40, 20), colour) for colour in ("red", "blue"))
        first.save(images / name, kind, save_all=True, append_images=[second])
    Image.new("RGB", (1, 3000), "red").save(images / "line.png")
    (images / "error.jpg").write_text("<html>404</html>")
    (images / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    names = sorted(path.name for path in images.iterdir() if not path.stem.isdigit())
    entries = [{"id": name, "image": name, "conversations": TALK} for name in names]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    source = Llava(files=(str(tmp_path / "a.json"),), image_folder=str(images))
    for transform in (SampleTransform(), SampleTransform(longest_side=16)):
        results = {
            o.id: o for chunk in source.chunks() for o in outcomes(source, chunk.payload, transform)
        }
        assert {name for name, outcome in results.items() if outcome.kind} == {
            "error.jpg",
            "drawing.png",
        }
        assert {results[name].kind for name in ("error.jpg", "drawing.png")} == {"image broken"}
        for name in set(names) - {"error.jpg", "drawing.png"}:
            shown = Image.open(io.BytesIO(results[name].sample.images[0])).convert("RGB")
            assert shown.getpixel((0, 0))[0] > 200, "the first frame"
            assert transform.longest_side is None or max(shown.size) <= 16
