"""Tars: grouped as WebDataset groups them, read as a stream; nothing leaves the tar, nothing is
lost without a word.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import COLOURS, draw

from pargo_ds.data.sources import Outcome, SampleTransform, WebDataset, outcomes
from pargo_ds.data.sources.webdataset import tar_files
from pargo_ds.errors import SourceError


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def write(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    packed = {
        ".gz": "w:gz",
        ".tgz": "w:gz",
        ".bz2": "w:bz2",
        ".tbz2": "w:bz2",
        ".xz": "w:xz",
        ".txz": "w:xz",
    }
    with tarfile.open(path, packed.get(path.suffix, "w")) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(number: int, text: str | None = None) -> list[tuple[tarfile.TarInfo, bytes]]:
    caption = f"Number {number}, größer." if text is None else text
    return [
        member(f"{number:05}.png", draw(COLOURS[number % 6], number % 9)),
        member(f"{number:05}.txt", caption.encode()),
    ]


def read(*names: Path | str, **options) -> list[Outcome]:
    source = WebDataset(files=tar_files([str(name) for name in names]), **options)
    return [
        outcome
        for chunk in source.chunks()
        for outcome in outcomes(source, chunk.payload, SampleTransform())
    ]


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz"])
@pytest.mark.parametrize("kind", ["coarse", "detailed"])
def test_text_bytes_and_order_come_back(tmp_path: Path, ending: str, kind: str) -> None:
    for part in (1, 0):
        write(
            tmp_path / f"part{part}.{ending}",
            [m for number in range(5) for m in pair(5 * part + number)],
        )
    found = read(tmp_path, caption_as=kind)
    assert [outcome.id for outcome in found] == [f"{number:05}" for number in range(10)]
    for number, outcome in enumerate(found):
        assert outcome.sample.images == [draw(COLOURS[number % 6], number % 9)]
        assert outcome.sample.captions == {kind: f"Number {number}, größer."}
    assert [outcome.id for outcome in read(tmp_path / f"part1*.{ending}")] == [
        f"{number:05}" for number in range(5, 10)
    ]


def test_key_ends_at_the_first_dot_of_the_file_name(tmp_path: Path) -> None:
    red, blue = draw("red", 0), draw("blue", 1)
    members = [
        member("a.b/", kind=tarfile.DIRTYPE),
        member("a.b/01.left.png", red),
        member("a.b/01.RIGHT.PNG", blue),
        member(
            "a.b/01.json",
            json.dumps({"caption": "Two.", "detailed": "Two squares.", "width": 64}).encode(),
        ),
        member("a.b/01.cls", b"7"),
        member("a.b/02.jpg", red),
        member("a.b/02.caption", b"One."),
    ]
    one, two = read(write(tmp_path / "t.tar", members), image_parts=("left", "right"))
    assert (one.id, one.sample.images) == ("a.b/01", [red, blue])
    assert one.sample.captions == {"coarse": "Two.", "detailed": "Two squares."}
    assert (two.id, two.sample.captions) == ("a.b/02", {"coarse": "One."})


def test_json_may_hold_a_conversation_and_an_id(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]
    fields = json.dumps({"id": 17, "conversations": talk}).encode()
    (found,) = read(
        write(tmp_path / "t.tar", [member("x.png", draw("red", 0)), member("x.json", fields)])
    )
    assert found.id == "17"
    assert [turn["content"] for turn in found.sample.turns] == ["<image>\nWhat?", "Red."]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (member("b.png", kind=tarfile.SYMTYPE, link="/etc/passwd"), "tar member refused"),
        (member("b.png", kind=tarfile.LNKTYPE, link="00000.png"), "tar member refused"),
        (member("b.png", kind=tarfile.CHRTYPE), "tar member refused"),
        (member("b.png", kind=tarfile.FIFOTYPE), "tar member refused"),
        (member("/abs/b.png", b"x"), "path leaves its folder"),
        (member("a/../../b.png", b"x"), "path leaves its folder"),
        (member("noending", b"x"), "tar member refused"),
        (member("__meta__.json", b"{}"), "tar member refused"),
        (member("b.png", b"no image"), "image broken"),
        (member("b.txt", b"only text"), "image missing"),
        (member("b.json", b"{"), "not JSON"),
        (member("b.json", b"[1]"), "does not fit"),
        (member("b.json", b'{"caption": ["x"]}'), "image missing"),
        (member("b.txt", b"\xff\xfe"), "not UTF-8"),
        (member("b.cls", b"7"), "image missing"),
    ],
)
def test_unusable_member_is_a_reject_and_the_rest_is_read(tmp_path: Path, bad, kind: str) -> None:
    found = read(write(tmp_path / "t.tar", [*pair(0), bad, *pair(1)]))
    (reject,) = (outcome for outcome in found if outcome.sample is None)
    assert reject.kind == kind
    assert reject.where == {"file": str(tmp_path / "t.tar"), "member": bad[0].name}
    assert [outcome.id for outcome in found if outcome.sample] == ["00000", "00001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar"]


def test_hidden_members_are_nobodys_data(tmp_path: Path) -> None:
    red, text = pair(0)
    hidden = [
        member(name, b"\0\5\x16\7")
        for name in ("d/._00000.png", "d/.DS_Store", "._00000.txt", "d/.x/.y.json")
    ]
    for name in ("d/00000", "./d/00000", "00000"):
        renamed = [
            member(f"{name}.png", red[1]),
            hidden[1],
            hidden[0],
            member(f"{name}.txt", text[1]),
        ]
        (found,) = read(write(tmp_path / "t.tar", [hidden[2], *renamed, hidden[3]]))
        assert (found.sample.images, found.sample.captions) == (
            [red[1]],
            {"coarse": "Number 0, größer."},
        )


def test_a_mask_is_no_image_unless_it_is_asked_for(tmp_path: Path) -> None:
    image, mask = draw("red", 0), draw("blue", 1)
    members = [
        member("1.mask.png", mask),
        member("1.png", image),
        member("1.txt", b"A."),
        member("1.cls", b"7"),
    ]
    write(tmp_path / "t.tar", members)
    (found,) = read(tmp_path / "t.tar")
    assert found.sample.images == [image]
    assert found.sample.meta == {
        "changed": ["members not read: .cls", "members not read: .mask.png"]
    }
    (found,) = read(tmp_path / "t.tar", image_parts=("mask",))
    assert found.sample.images == [mask, image]
    (found,) = read(write(tmp_path / "t.tar", [members[0], members[2]]))
    assert (found.kind, "--image-parts mask reads these" in found.reason) == ("image missing", True)


@pytest.mark.parametrize(
    "names", [("cat.txt", "cat.1.txt"), ("cat.txt", "cat.caption"), ("cat.en.txt",)]
)
def test_a_second_text_is_not_lost_without_a_reject(tmp_path: Path, names: tuple[str, ...]) -> None:
    members = [member("cat.png", draw("red", 0)), *(member(name, name.encode()) for name in names)]
    (found,) = read(write(tmp_path / "t.tar", members))
    assert found.kind == "does not fit"
    assert all(f".{name.partition('.')[2]}" in found.reason for name in names)


def test_a_json_member_may_hold_any_conversation_that_json_files_may(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}]
    for fields, kind in (({"messages": messages}, ""), ({"messages": messages, "audio": "a.wav"}, "audio"),
                         ({"texts": [{"user": "What?", "assistant": "Red."}]}, "")):  # fmt: skip
        data = json.dumps(fields).encode()
        (found,) = read(
            write(tmp_path / "t.tar", [member("x.png", draw("red", 0)), member("x.json", data)])
        )
        assert found.kind == kind
        assert kind or [turn["content"] for turn in found.sample.turns] == [
            "<image>\nWhat?",
            "Red.",
        ]


def test_two_members_of_one_name_are_a_reject(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t.tar", [*pair(0), pair(0)[0], *pair(1)]))
    assert [outcome.kind for outcome in found] == ["does not fit", ""]


def test_damaged_tar_keeps_what_stands_before_and_says_what_is_lost(tmp_path: Path) -> None:
    whole = write(tmp_path / "t.tar", [m for number in range(6) for m in pair(number)]).read_bytes()
    with tarfile.open(tmp_path / "t.tar") as tar:
        places = {info.name: info.offset for info in tar}
    header, content = places["00003.png"], places["00003.png"] + 512
    broken = {
        "cut in a header": whole[: header + 100],
        "cut in a file": whole[: content + 20],
        "broken header": whole[:header] + b"\x01" * 512 + whole[header + 512 :],
    }
    for name, data in broken.items():
        (tmp_path / "t.tar").write_bytes(data)
        found = read(tmp_path / "t.tar")
        assert [outcome.kind for outcome in found][:2] == ["", ""], name
        assert found[-1].kind == "tar damaged", name
        assert "rest of the tar" in found[-1].reason
        assert sum(outcome.sample is not None for outcome in found) in (2, 3)
    (tmp_path / "t.tar").write_bytes(whole[:header])
    found = read(tmp_path / "t.tar")
    assert [outcome.kind for outcome in found] == ["", "", "", "tar damaged"]
    assert "no end mark" in found[-1].reason


def test_a_tar_behind_another_is_told(tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{number}.tar", pair(number)).read_bytes() for number in range(2))
    (tmp_path / "t.tar").write_bytes(one + two)
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(one) + gzip.compress(two))
    for name in ("t.tar", "t.tar.gz"):
        found = read(tmp_path / name)
        assert [outcome.kind for outcome in found] == ["", "tar damaged"]
        assert "more stands behind its end mark" in found[1].reason


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_that_was_packed_in_parts_is_read_whole(
    tmp_path: Path, packed: Callable[[bytes], bytes]
) -> None:
    whole = write(tmp_path / "t.tar", [m for number in range(6) for m in pair(number)]).read_bytes()
    (tmp_path / "t.tar.x").write_bytes(
        b"".join(packed(whole[at : at + 3000]) for at in range(0, len(whole), 3000))
    )
    found = read(tmp_path / "t.tar.x")
    assert [outcome.id for outcome in found if outcome.sample] == [
        f"{number:05}" for number in range(6)
    ]
    assert len(found) == 6


def test_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    whole = write(tmp_path / "t.tar.gz", pair(0)).read_bytes()
    for damaged in (whole[:-8] + b"\1\2\3\4" + whole[-4:], whole[:-3], whole + b"more"):
        (tmp_path / "t.tar.gz").write_bytes(damaged)
        assert [outcome.kind for outcome in read(tmp_path / "t.tar.gz")] == ["", "tar damaged"]


def test_what_is_no_tar_is_a_reject_or_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"x" * 5000)[:20])
    (tmp_path / "c.tar").write_bytes(b"")
    assert [outcome.kind for outcome in read(tmp_path)] == ["tar damaged"] * 3
    with pytest.raises(SourceError, match=r"nothing\*\.tar is no tar"):
        read(tmp_path / "nothing*.tar")


def test_long_header_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "t.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 5000)
    (found,) = read(tmp_path / "t.tar")
    assert (found.kind, "8,589,934,592 bytes" in found.reason) == ("tar damaged", True)
