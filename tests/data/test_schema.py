"""The sample format: what goes in comes out, and what does not fit is refused with the id and the
reason.
"""

from __future__ import annotations

import pytest

from pargo_ds.data.shards.schema import COLUMNS, Sample, pack_images, unpack_images
from pargo_ds.errors import SampleError

TURNS = [
    {"role": "user", "content": "<image>\nWhat is it?"},
    {"role": "assistant", "content": "dog"},
]


def make_sample(**changes: object) -> Sample:
    fields = {
        "id": "s1",
        "images": [b"image"],
        "turns": TURNS,
        "captions": {"coarse": "A dog."},
        "meta": {"a": [1]},
    }
    return Sample(**{**fields, **changes})


@pytest.mark.parametrize("images", [[], [b"one"], [b"ab", b"c" * 300, b"d"]])
def test_images_survive_packing(images: list[bytes]) -> None:
    assert unpack_images(pack_images(images)) == images


def test_packed_layout_is_the_documented_one() -> None:
    assert pack_images([b"ab", b"c"]) == b"\x02\0\0\0\x02\0\0\0\x01\0\0\0abc"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x01\0",
        b"\x05\0\0\0\x01\0\0\0",
        pack_images([b"abc"])[:-1],
        pack_images([b"a"]) + b"x",
    ],
)
def test_cut_images_are_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="images column"):
        unpack_images(broken)


def test_sample_survives_the_row() -> None:
    sample = make_sample()
    assert set(sample.to_mds()) == set(COLUMNS)
    assert Sample.from_mds(sample.to_mds()) == sample


def test_text_only_and_caption_only_samples_are_fine() -> None:
    words = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi"},
    ]
    make_sample(images=[], captions={}, turns=words).to_mds()
    make_sample(turns=[]).to_mds()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"images": [b"a", b"b"]},
            "1 image placeholders but 2 images; each placeholder needs one image",
        ),
        ({"images": []}, "1 image placeholders but 0 images"),
        ({"images": [b""]}, "image 0 is empty"),
        ({"images": ["text"]}, "image 0 is a str"),
        ({"turns": TURNS[:1]}, "last user turn has no answer"),
        ({"turns": TURNS[::-1]}, "the role assistant stands where the user should speak"),
        ({"turns": [{"role": "bot", "content": "x"}]}, "role 'bot'"),
        ({"turns": [{"role": "user"}]}, "exactly the keys role and content"),
        ({"turns": [TURNS[0], {"role": "assistant", "content": " "}]}, "has no text"),
        ({"captions": {"long": "A dog."}}, "unknown caption 'long'"),
        ({"captions": {"coarse": ""}}, "coarse caption is empty"),
        ({"meta": {"x": object()}}, "meta cannot be written as JSON"),
    ],
)
def test_malformed_sample_is_named_with_its_reason(changes: dict, reason: str) -> None:
    with pytest.raises(SampleError, match="^sample 's1': ") as caught:
        make_sample(**changes).to_mds()
    assert reason in str(caught.value)


def test_sample_without_id_is_refused() -> None:
    with pytest.raises(SampleError, match="the id is empty"):
        make_sample(id="").to_mds()


def test_reading_names_the_shard() -> None:
    row = make_sample().to_mds() | {"images": b"\x02"}
    with pytest.raises(
        SampleError, match=r"sample 's1' in shard\.00003\.mds: the images column holds 1 bytes"
    ):
        Sample.from_mds(row, where="shard.00003.mds")
    del row["turns"]
    with pytest.raises(SampleError, match=r"columns \['turns'\] are missing"):
        Sample.from_mds(row)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("id", "", "the id is empty"),
        ("turns", {}, "turns is a dict; expected a list"),
        ("turns", [{"role": "user"}], "exactly the keys role and content"),
        ("turns", [{"role": "bot", "content": "x"}], "the role 'bot'"),
        ("turns", [{"role": "user", "content": None}], "has no text"),
        ("captions", {"coarse": 3}, "the coarse caption is a int; expected text"),
        ("meta", [], "meta is a list; expected an object"),
    ],
)
def test_reading_checks_the_structure(column: str, value: object, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        Sample.from_mds({**make_sample().to_mds(), column: value})
