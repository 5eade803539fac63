"""1,000 and more mutated inputs through whole builds: a sample or a reject for each, never a crash,
nothing outside.

Two levels: a container that cannot be read is one clear error and leaves nothing; a faulty entry is
a reject.
"""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import random
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import COLOURS, draw

from pargo_ds.data.building.delivery import Destination, build
from pargo_ds.data.building.plan import Plan
from pargo_ds.data.shards.mds import read_samples
from pargo_ds.data.sources import Coco, Llava, Source, Table, WebDataset
from pargo_ds.errors import BuildError, SourceError

IMAGES = 6


def bomb() -> bytes:
    """A PNG of 1.6 gigapixels in a few kB."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**30),
    *("", " ", "\0", "\ud800", "\u202e\u0000\uffff", "x" * 100_000, "<image>", "%2e%2e/x", "C:\\x"),
    *(
        "../../outside.png",
        "/etc/passwd",
        "/dev/zero",
        "a/../../b",
        "link.png",
        "bomb.png",
        "cut.png",
        "no.png",
        ".",
    ),
    *(
        [],
        {},
        [[]],
        [[[[["deep"]]]]],
        ["0.png", "1.png"],
        ["0.png", None],
        [0],
        "0.png" + "/" * 300,
    ),
    *(
        {"from": "human"},
        {"id": 1},
        [{"from": "gpt", "value": "x"}],
        [{"from": "human", "value": "<image>" * 50}],
    ),
]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy of some JSON with one place of it changed, removed, doubled or exchanged."""
    if rng.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
        return copy.deepcopy(rng.choice(ODD))
    value = copy.copy(value)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    action = rng.random()
    if action < 0.6:
        value[key] = mutated(value[key], rng)
    elif action < 0.75:
        del value[key]
    elif action < 0.85 and isinstance(value, list):
        value.insert(key, value[key])
    elif isinstance(value, dict):
        value[rng.choice(["id", "image", "conversations", "caption", "x"])] = value[key]
    return value


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, flipped, doubled, or with other bytes in them."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        place = rng.randrange(len(data) + 1)
        action = rng.random()
        if action < 0.2:
            del data[place:]
        elif action < 0.5 and data:
            data[place - 1] ^= 1 << rng.randrange(8)
        elif action < 0.7:
            data[place:place] = rng.choice(
                [b"\xff\xfe", b"\0" * 700, b'"', b"}", b"[", b"\\ud800", b"\n", b"9" * 5000]
            )
        elif action < 0.85:
            data[place:place] = data[rng.randrange(len(data) + 1) :][:512]
        else:
            del data[place : place + rng.choice([1, 10, 512])]
    return bytes(data)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with images, and a secret image beside it that nothing may reach."""
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        (tmp_path / "images" / f"{number}.png").write_bytes(draw(COLOURS[number], number))
    (tmp_path / "outside.png").write_bytes(draw("white", 8, 200))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "images" / "bomb.png").write_bytes(bomb())
    (tmp_path / "images" / "cut.png").write_bytes(draw("red", 2)[:90])
    return tmp_path


def llava_entry(number: int) -> dict[str, Any]:
    talk = [
        {"from": "human", "value": f"<image>\nWhat is {number}?"},
        {"from": "gpt", "value": f"It is {number}."},
    ]
    return {"id": f"e{number}", "image": f"{number % IMAGES}.png", "conversations": talk}


def caption_fields(number: int) -> dict[str, Any]:
    return {"caption": f"Caption {number}.", "id": f"t{number}"}


def a_tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def a_csv(rows: list[list[str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([["id", "image", "text"], *rows])
    return file.getvalue().encode("utf-8", "surrogatepass")


def a_parquet(rows: list[tuple[Any, Any, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    file = io.BytesIO()
    names = ("id", "image", "text")
    pa.parquet.write_table(
        pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), file, row_group_size=7
    )
    return file.getvalue()


def run(source: Callable[[], Source], room: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Build; check that the account is complete and that nothing else was written; remove the
    result.
    """
    before, out = set(room.rglob("*")), room / "out"
    merged, said = None, ""
    try:
        merged = build(Plan(source=source()), Destination(out), max_rejects=1, said=lambda _: None)
    except (SourceError, BuildError) as error:
        said = str(error)
        assert not (out / "index.json").exists()
        assert out.exists() == ("is left" in said or "are rejects" in said), (
            "only rejects may be left"
        )
    assert merged or (str(room) in said and len(said) < 2000)
    rejects = []
    if out.exists():
        rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert all(
        reject["kind"] and reject["file"] and 0 < len(reject["reason"]) < 2000 for reject in rejects
    )
    if merged is not None:
        samples = list(read_samples(out))
        assert merged.inputs == len(samples) + len(rejects)
        assert len({sample.id for sample in samples}) == len(samples)
        assert not any((room / "outside.png").read_bytes() in sample.images for sample in samples)
    assert all(path == out or out in path.parents for path in set(room.rglob("*")) - before)
    shutil.rmtree(out, ignore_errors=True)
    return merged, rejects


def write(room: Path, name: str, data: bytes) -> tuple[str]:
    (room / name).write_bytes(data)
    return (str(room / name),)


def test_400_mutated_llava_entries(room: Path) -> None:
    rng = random.Random(1)
    mutations = samples = 0
    for number in range(20):
        entries = [mutated(llava_entry(n), rng) if n % 6 else llava_entry(n) for n in range(24)]
        ending = ("json", "jsonl")[number % 2]
        text = json.dumps(entries) if ending == "json" else "\n".join(map(json.dumps, entries))
        files = write(room, f"a.{ending}", text.encode())
        merged, _ = run(
            lambda files=files: Llava(
                files=files, image_folder=str(room / "images"), chunk_inputs=9
            ),
            room,
        )
        assert merged.inputs == 24
        assert merged.samples >= 4
        mutations += 20
        samples += merged.samples
    assert mutations == 400
    assert samples < 300, "most mutations are faults"


def test_200_mutated_coco_entries(room: Path) -> None:
    rng = random.Random(2)
    refused = 0
    for number in range(10):
        images = [{"id": n, "file_name": f"{n % IMAGES}.png"} for n in range(20)]
        annotations = [{"image_id": n, "caption": f"Caption {n}."} for n in range(20)]
        images = [mutated(image, rng) if n % 2 else image for n, image in enumerate(images)]
        annotations = [mutated(one, rng) if n % 4 > 1 else one for n, one in enumerate(annotations)]
        files = write(
            room, "a.json", json.dumps({"images": images, "annotations": annotations}).encode()
        )
        options = {"image_folder": str(room / "images"), "captions": ("first", "all")[number % 2]}
        merged, rejects = run(
            lambda files=files, options=options: Coco(files=files, **options), room
        )
        if merged is None:  # an id that another image has
            refused += 1
            continue
        assert merged.samples >= 2
        assert rejects
    assert refused < 4


def test_200_mutated_tar_members(room: Path) -> None:
    rng = random.Random(3)
    bad = [
        "/abs/x.png",
        "../x.png",
        "a/../../x.txt",
        "x",
        ".png",
        "",
        "x" * 300 + ".txt",
        "a\nb.txt",
        "__x__.txt",
    ]
    bad += ["\udcff.png", "ä" * 90 + ".png"]
    for _ in range(10):
        members = []
        for number in range(20):
            name = (
                f"{number:04}"
                if number % 2
                else rng.choice([*bad, f"{number:04}.png", f"{number:04}.txt"])
            )
            fields = json.dumps(
                mutated(caption_fields(number), rng) if number % 2 == 0 else caption_fields(number)
            )
            if number % 2:
                members += [
                    (f"{name}.png", draw(COLOURS[number % 6], number % 9)),
                    (f"{name}.json", fields.encode()),
                ]
            else:
                members += [
                    (name, rng.choice([b"", bomb(), draw("red", 1), b"text", fields.encode()]))
                ]
                members += [(f"{number:04}.json", fields.encode())]
        files = write(room, "a.tar", a_tar(members))
        merged, _ = run(lambda files=files: WebDataset(files=files), room)
        assert merged.samples >= 10


def test_200_mutated_table_rows(room: Path) -> None:
    rng = random.Random(4)
    codes = [base64.b64encode(draw(COLOURS[n], n)).decode() for n in range(IMAGES)]
    for _ in range(10):
        rows = []
        for number in range(20):
            row = [f"r{number}", codes[number % IMAGES], f"Text {number}."]
            if number % 2 == 0:
                odd = rng.choice(
                    [str(rng.choice(ODD)), damaged(row[1].encode(), rng).decode("latin-1")]
                )
                row[rng.randrange(3)] = odd
            rows.append(row[: rng.choice([3, 3, 3, 2])] if number % 2 == 0 else row)
        files = write(room, "a.csv", a_csv(rows))
        table = {
            "image_column": "image",
            "images_are": "bytes",
            "caption_column": "text",
            "id_column": "id",
        }
        merged, _ = run(lambda files=files, table=table: Table(files=files, **table), room)
        assert merged.samples >= 5


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path, tuple[str]], Source]]] = {
    "a.json": (
        lambda: json.dumps([llava_entry(n) for n in range(8)]).encode(),
        lambda room, files: Llava(files=files, image_folder=str(room / "images")),
    ),
    "a.jsonl": (
        lambda: b"\n".join(json.dumps(llava_entry(n)).encode() for n in range(8)),
        lambda room, files: Llava(files=files, image_folder=str(room / "images"), chunk_inputs=3),
    ),
    "a.tar": (
        lambda: a_tar(
            [
                (f"{n}.{e}", d)
                for n in range(4)
                for e, d in (("png", draw("red", n)), ("txt", b"Text"))
            ]
        ),
        lambda room, files: WebDataset(files=files),
    ),
    "a.csv": (
        lambda: a_csv([[f"r{n}", f"{n % IMAGES}.png", f"Text {n}."] for n in range(12)]),
        lambda room, files: Table(
            files=files,
            image_column="image",
            caption_column="text",
            image_folder=str(room / "images"),
            chunk_inputs=5,
        ),
    ),
    "a.parquet": (
        lambda: a_parquet([(f"r{n}", draw("blue", n % 9), f"Text {n}.") for n in range(12)]),
        lambda room, files: Table(
            files=files,
            image_column="image",
            images_are="bytes",
            caption_column="text",
            id_column="id",
            chunk_inputs=5,
        ),
    ),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_60_damaged_files_of_each_kind(room: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    make, source = KINDS[name]
    whole = make()
    rng = random.Random(name)
    errors = 0
    for _ in range(60):
        files = write(room, name, damaged(whole, rng))
        merged, _ = run(lambda files=files: source(room, files), room)
        errors += merged is None
    assert errors < 60
