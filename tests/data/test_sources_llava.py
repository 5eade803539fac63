"""LLaVA's files: text, placement and bytes come back in order; what cannot be used is told with
place and reason.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny import COLOURS, draw

from pargo_ds.data.sources import Llava, Outcome, SampleTransform, outcomes
from pargo_ds.errors import SourceError


def talk(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)
    ]


def entry(number: int, **changes) -> dict:
    talked = talk(f"<image>\nWhat is {number}?", f"It is {number}, naïvely.")
    return {"id": f"e{number}", "image": f"sub/{number}.png", "conversations": talked, **changes}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(12):
        (folder / "sub" / f"{number}.png").write_bytes(
            draw(COLOURS[number % 6], number % 9, 32 + number)
        )
    return folder


def read(
    path: Path,
    images: Path | None,
    transform: SampleTransform = SampleTransform(),  # noqa: B008
    **options,
) -> list[Outcome]:
    source = Llava(files=(str(path),), image_folder=str(images) if images else None, **options)
    return [
        outcome
        for chunk in source.chunks()
        for outcome in outcomes(source, chunk.payload, transform)
    ]


def write(path: Path, entries: list) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text(
        "\n".join(map(json.dumps, entries)) + "\n\n" if lines else json.dumps(entries, indent=1)
    )
    return path


@pytest.mark.parametrize("name", ["some.json", "some.jsonl"])
def test_text_bytes_and_order_come_back(tmp_path: Path, images: Path, name: str) -> None:
    entries = [entry(number) for number in range(12)]
    found = read(
        write(tmp_path / name, entries),
        images,
        SampleTransform(source="made up", license="CC0"),
        chunk_inputs=5,
    )
    assert [outcome.id for outcome in found] == [f"e{number}" for number in range(12)]
    for number, outcome in enumerate(found):
        sample = outcome.sample
        assert sample is not None, outcome.reason
        assert sample.images == [(images / "sub" / f"{number}.png").read_bytes()]
        assert [turn["content"] for turn in sample.turns] == [
            turn["value"] for turn in entries[number]["conversations"]
        ]
        assert [turn["role"] for turn in sample.turns] == ["user", "assistant"]
        assert (sample.source, sample.license) == ("made up", "CC0")
        assert outcome.where["line" if name.endswith("l") else "entry"] == number + 1


def test_placeholders_stay_where_they_are(tmp_path: Path, images: Path) -> None:
    one = entry(0, conversations=talk("Look: <image> here. And?", "Yes.", "More?", "No."))
    two = entry(
        1, image=["sub/1.png", "sub/2.png"], conversations=talk("<image> or <image>?", "The first.")
    )
    found = read(write(tmp_path / "a.json", [one, two]), images)
    assert found[0].sample.turns[0]["content"] == "Look: <image> here. And?"
    assert found[1].sample.turns[0]["content"] == "<image> or <image>?"
    assert len(found[1].sample.images) == 2


def test_missing_placeholder_goes_before_the_first_human_turn(tmp_path: Path, images: Path) -> None:
    turns = [{"from": "system", "value": "Be short."}, *talk("What?", "A square.")]
    found = read(write(tmp_path / "a.json", [entry(0, conversations=turns)]), images)
    assert [turn["content"] for turn in found[0].sample.turns] == [
        "Be short.",
        "<image>\nWhat?",
        "A square.",
    ]


def test_text_only_entries_need_no_folder(tmp_path: Path) -> None:
    plain = {"conversations": talk("Hello?", "Hello.")}
    found = read(
        write(tmp_path / "a.json", [plain, {**plain, "image": ""}, {**plain, "image": []}]), None
    )
    assert [outcome.sample.images for outcome in found] == [[], [], []]
    assert [outcome.id for outcome in found] == ["a-00000001", "a-00000002", "a-00000003"]


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"image": "sub/none.png"}, "image missing", "no file sub/none.png"),
        ({"image": "../sub/1.png"}, "path leaves its folder", "absolute or holds .."),
        ({"image": "/etc/passwd"}, "path leaves its folder", "/etc/passwd is absolute"),
        ({"image": "sub"}, "image unreadable", "no regular file"),
        ({"image": "a" * 5000}, "image unreadable", "too long"),
        ({"image": {"path": 1}}, "image missing", "expected text"),
        ({"image": {"file": "sub/1.png"}}, "image missing", "expected a path"),
        ({"image": [["sub/1.png"]]}, "image missing", "expected text"),
        ({"image": ["sub/1.png"] * 1001}, "too large", "1,001 images"),
        ({"image": "text.png"}, "image broken", "image 0 is not an image"),
        ({"image": "cut.png"}, "image broken", "cut or is broken"),
        ({"image": "cut.jpg"}, "image broken", "cut or is broken"),
        ({"image": "empty.png"}, "image broken", "empty"),
        ({"image": "sub/1.png\0"}, "path leaves its folder", "zero character"),
        ({"id": True}, "bad id", "True"),
        ({"id": ["x"]}, "bad id", "expected text or a number"),
        (
            {"conversations": []},
            "text empty",
            "no turns under conversations, conversation, messages, texts; its keys are id, image",
        ),
        ({"conversations": talk("<image> What?")}, "turns out of order", "no answer"),
        ({"conversations": talk("<image> What?", " ")}, "text empty", "turn 1"),
        (
            {"conversations": talk("<image><image> What?", "It.")},
            "placeholders",
            "2 image placeholders but 1 images",
        ),
        ({"conversations": talk("<image> What?", "It.")[::-1]}, "turns out of order", "human"),
        (
            {"conversations": [{"from": "bot", "value": "x"}]},
            "unknown speaker",
            "from bot; expected one of human",
        ),
        ({"conversations": [{"from": [1], "value": "x"}]}, "unknown speaker", "[1]"),
        ({"conversations": talk("<image> \ud800?", "It.")}, "text broken", "half a character"),
        ({"conversations": talk("<image> What?", "x" * (1 << 25))}, "too large", "33,5"),
        ({"video": "clip.mp4"}, "video", "only images"),
    ],
)
def test_unusable_entry_is_a_reject_with_its_reason(
    tmp_path: Path, images: Path, changes: dict, kind: str, reason: str
) -> None:
    (images / "text.png").write_text("no image")
    (images / "cut.png").write_bytes(draw("red", 0)[:-30])
    Image.effect_noise((64, 64), 50).save(images / "cut.jpg")
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:-300])
    (images / "empty.png").write_bytes(b"")
    found = read(write(tmp_path / "a.json", [entry(0), entry(1, **changes), entry(2)]), images)
    assert [outcome.sample is not None for outcome in found] == [True, False, True]
    assert (found[1].kind, found[1].where) == (kind, {"file": str(tmp_path / "a.json"), "entry": 2})
    assert reason in found[1].reason
    assert len(found[1].reason) < 1000


def test_entries_of_other_kinds_are_rejects(tmp_path: Path, images: Path) -> None:
    found = read(write(tmp_path / "a.json", [None, 1, [entry(1)], "x", entry(1)]), images)
    assert [outcome.kind for outcome in found] == ["does not fit"] * 4 + [""]


def test_links_out_of_the_folder_need_permission(tmp_path: Path, images: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").write_bytes(draw("red", 3))
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    path = write(tmp_path / "a.json", [entry(0, image="linked/0.png")])
    (found,) = read(path, images)
    assert (found.kind, found.sample) == ("path leaves its folder", None)
    assert "--follow-links" in found.reason
    assert read(path, images, follow_links=True)[0].sample.images == [draw("red", 3)]


def test_a_pipe_does_not_stop_the_build(tmp_path: Path, images: Path) -> None:
    os.mkfifo(images / "pipe.png")
    (found,) = read(write(tmp_path / "a.json", [entry(0, image="pipe.png")]), images)
    assert found.kind == "image unreadable"


def test_bombs_of_pixels_are_refused_before_decoding(tmp_path: Path, images: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    (images / "bomb.png").write_bytes(bomb.getvalue())
    (found,) = read(write(tmp_path / "a.json", [entry(0, image="bomb.png")]), images)
    assert (found.kind, "too large" in found.reason) == ("image broken", True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[{"id": 1},\n{"id": 2', r"a\.json, line 2, column \d+: not JSON"),
        (b'[\n\n"\xff"]', r"a\.json, line 3: not UTF-8"),
        (b'{"id": 1}', "holds dict, expected an array"),
        (b"[" * 100_000, "not readable as JSON"),
        (b'[{"id": ' + b"9" * 5000 + b"}]", "not readable as JSON"),
        (b"", "line 1, column 1: not JSON"),
    ],
)
def test_broken_document_is_one_error_with_file_and_line(
    tmp_path: Path, data: bytes, said: str
) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(SourceError, match=said):
        read(tmp_path / "a.json", None)


def test_broken_lines_are_rejects_with_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pargo_ds.data.sources import json_files

    monkeypatch.setattr(json_files, "MAX_LINE", 3000)
    good = json.dumps({"id": "x", "conversations": talk("Hello?", "Hello.")}).encode()
    lines = [
        good,
        b'{"id": ',
        b"",
        b'"\xff"',
        b"[" * 2900,
        b'"' + b"x" * 9000 + b'"',
        b"   ",
        good.replace(b"x", b"y"),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    for chunk_inputs in (1, 3, 100):
        found = read(tmp_path / "a.jsonl", None, chunk_inputs=chunk_inputs)
        assert [(outcome.where["line"], outcome.kind) for outcome in found] == [
            (1, ""), (2, "not JSON"), (4, "not UTF-8"), (5, "not JSON"), (6, "too large"), (8, "")
        ]  # fmt: skip


def test_large_images_become_smaller_and_upright(tmp_path: Path, images: Path) -> None:
    image = Image.new("RGB", (80, 40), "white")
    image.paste((255, 0, 0), (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by 90 degrees: the red half comes on top
    image.save(images / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (64, 64), (0, 0, 255, 10)).save(images / "clear.png")
    Image.new("I;16", (64, 32), 40000).save(images / "deep.png")
    Image.new("CMYK", (64, 32)).save(images / "print.jpg")
    names = ["turned.jpg", "clear.png", "deep.png", "print.jpg", "sub/0.png"]
    path = write(
        tmp_path / "a.json", [entry(number, image=name) for number, name in enumerate(names)]
    )
    found = [outcome.sample for outcome in read(path, images, SampleTransform(longest_side=32))]
    turned, clear, deep, printed, small = (
        Image.open(io.BytesIO(sample.images[0])) for sample in found
    )
    assert (turned.format, turned.size, turned.getexif().get(0x0112)) == ("JPEG", (16, 32), None)
    assert turned.getpixel((8, 4))[1] < 60 < 200 < turned.getpixel((8, 28))[1]
    assert (clear.format, clear.mode, clear.getpixel((5, 5))) == ("PNG", "RGBA", (0, 0, 255, 10))
    assert (deep.format, deep.size) == ("PNG", (32, 16))
    assert abs(deep.getpixel((5, 5)) - 40000) < 2
    assert (printed.format, printed.mode) == ("JPEG", "RGB")
    assert found[4].images[0] == (images / "sub/0.png").read_bytes()
    assert small.size == (32, 32)
