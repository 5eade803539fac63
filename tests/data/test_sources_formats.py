"""Conversations as other projects write them: read where the meaning is plain, else a reject that
names the key.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import draw

from pargo_ds.data.sources import Llava, Outcome, Reject, SampleTransform, outcomes
from pargo_ds.data.sources.conversations import LEADING, UNANSWERED, dialogue_of, turns_of
from pargo_ds.data.sources.json_files import holds_lines, parsed
from pargo_ds.errors import SourceError

USER, ANSWER = "What colour is it?", "Red."


def talk(user: str = USER, answer: str = ANSWER) -> list[dict[str, str]]:
    return [{"from": "human", "value": user}, {"from": "gpt", "value": answer}]


def roles(user: Any = USER, answer: Any = ANSWER) -> list[dict[str, Any]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


READ: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "LLaVA": (
        {"image": "a.png", "conversations": talk(f"<image>\n{USER}")},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "LLaMA-Factory": (
        {"images": ["a.png"], "conversations": talk(f"<image>{USER}")},
        ["a.png"],
        f"<image>{USER}",
    ),
    "no mark": ({"images": ["a.png"], "conversations": talk()}, ["a.png"], f"<image>\n{USER}"),
    "a key picture": (
        {"picture": "a.png", "conversations": talk()},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "ms-swift": (
        {"messages": roles(f"<image>{USER}"), "images": ["a.png"]},
        ["a.png"],
        f"<image>{USER}",
    ),
    "structs": (
        {"messages": roles(f"<image>{USER}"), "images": [{"bytes": None, "path": "a.png"}]},
        [{"bytes": None, "path": "a.png"}],
        f"<image>{USER}",
    ),
    "OpenAI": (
        {
            "messages": roles(
                [
                    {"type": "text", "text": "Look: "},
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "text", "text": USER},
                ],
                [{"type": "text", "text": ANSWER}],
            )
        },
        ["a.png"],
        f"Look: <image>{USER}",
    ),
    "OpenAI parts, images beside": (
        {"messages": roles([{"type": "image"}, {"type": "text", "text": USER}]), "images": "a.png"},
        ["a.png"],
        f"<image>{USER}",
    ),
    "ShareGPT": (
        {
            "image": "a.png",
            "conversations": [
                {"from": "Human", "value": USER},
                {"from": "chatgpt", "value": ANSWER},
            ],
        },
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "MiniCPM": (
        {"image": "a.png", "conversations": roles(f"<image>\n{USER}")},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "MiniCPM, named": (
        {
            "image": {"<image_00>": "a.png", "<image_01>": "b.png"},
            "conversations": roles("<image_01>, <image_00>?"),
        },
        ["b.png", "a.png"],
        "<image>, <image>?",
    ),
    "Cauldron": (
        {"images": ["a.png"], "texts": [{"user": USER, "assistant": ANSWER, "source": "x"}]},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "Qwen-VL": (
        {"conversations": talk(f"Image 1: <img>a.png</img>\n{USER}")},
        ["a.png"],
        f"Image 1: <image>\n{USER}",
    ),
    "numbered": (
        {"image": ["a.png", "b.png"], "conversations": talk("<image 2> or <image 1>?")},
        ["b.png", "a.png"],
        "<image> or <image>?",
    ),
    "Phi 3": (
        {"image": "a.png", "conversations": talk(f"<|image_1|>\n{USER}")},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "capitals": (
        {"Image": "a.png", "conversations": talk(f"<IMAGE>\n{USER}")},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "image_path": ({"image_path": "a.png", "conversations": talk()}, ["a.png"], f"<image>\n{USER}"),
    "Qwen 2 VL, rendered": (
        {
            "image": "a.png",
            "conversations": talk(f"<|vision_start|><|image_pad|><|vision_end|>{USER}"),
        },
        ["a.png"],
        f"<image>{USER}",
    ),
    "image in the turn": (
        {"messages": [{**roles()[0], "image": "a.png"}, roles()[1]]},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "described twice": (
        {
            "image": "d/a.png",
            "image_file": "d/a.png",
            "image_id": "a.png",
            "mask": "m.png",
            "image_url": "http://x/y.jpg",
            "width": 7,
            "conversations": talk(),
        },
        ["d/a.png"],
        f"<image>\n{USER}",
    ),
    "Hugging Face's parts, by index": (
        {
            "images": ["a.png", "b.png"],
            "messages": roles(
                [
                    {"type": "image", "index": 1, "text": None},
                    {"type": "text", "index": None, "text": " or "},
                    {"type": "image", "index": 0, "text": None},
                ]
            ),
        },
        ["b.png", "a.png"],
        "<image> or <image>",
    ),
    "Cauldron, image in the turn": (
        {"texts": [{"user": USER, "assistant": ANSWER, "image": "a.png"}]},
        ["a.png"],
        f"<image>\n{USER}",
    ),
    "says that it has none": (
        {"has_image": False, "num_images": 0, "image_id": "", "img": None, "conversations": talk()},
        [],
        USER,
    ),
    "a caption of a file's name": ({"conversations": talk("a.png", "b.png")}, [], "a.png"),
    "text that speaks of marks": (
        {"conversations": talk("What is <img src='x.png'>?")},
        [],
        "What is <img src='x.png'>?",
    ),
    "weights of one": (
        {
            "weight": 1,
            "conversations": [
                {**talk()[0], "weight": 0},
                {**talk()[1], "weight": 1.0, "loss": True},
            ],
        },
        [],
        USER,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_other_projects_write_is_read_as_they_mean_it(name: str) -> None:
    record, images, question = READ[name]
    dialogue = dialogue_of(record)
    assert (dialogue.images, dialogue.changed) == (images, ())
    assert dialogue.turns == roles(question, "b.png" if "file's name" in name else ANSWER)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "audio": ({"audio": "x.wav", "conversations": talk()}, "audio", "it has audio: x.wav"),
    "videos": ({"videos": ["x.mp4"], "conversations": talk()}, "video", "it has videos"),
    "bytes under an unread key": (
        {"image_1": {"bytes": b"x"}, "conversations": talk()},
        "key not read",
        "its image_1",
    ),
    "base64 under an unread key": (
        {"image_base64": "/9j/", "conversations": talk()},
        "key not read",
        "its image_base64",
    ),
    "a number of an image": (
        {"image_id": 458752, "conversations": talk()},
        "key not read",
        "its image_id is 458752",
    ),
    "an address without ending": (
        {"image_url": {"url": "https://x/y?id=7"}, "conversations": talk()},
        "key not read",
        "its image_url",
    ),
    "bytes of a second image": (
        {"image": "a.png", "image2": {"bytes": b"x"}, "conversations": talk()},
        "key not read",
        "its image2",
    ),
    "an image under a turn's unread key": (
        {"messages": [{**roles()[0], "image_url": "a.png"}, roles()[1]]},
        "key not read",
        "turn 0: its image_url is a.png",
    ),
    "a file beside a turn": (
        {"messages": [{**roles()[0], "attachments": ["a.png"]}, roles()[1]]},
        "key not read",
        "turn 0: its attachments",
    ),
    "text and image in one part": (
        {"messages": roles([{"image": "a.png", "text": USER}])},
        "two values",
        "text and an image in one part",
    ),
    "two images in one part": (
        {"messages": roles([{"type": "image", "image": "a.png", "url": "b.png"}])},
        "two values",
        "image and url give two different images of turn 0",
    ),
    "Cauldron, not learned": (
        {"texts": [{"user": USER, "assistant": ANSWER, "loss": False}]},
        "not to be learned",
        "has loss: False",
    ),
    "an answer to avoid": (
        {"messages": roles(), "label": False},
        "not to be learned",
        "its label is False",
    ),
    "a thought of another name": (
        {"messages": [roles()[0], {**roles()[1], "thinking": "Hm"}]},
        "key not read",
        "turn 1 has thinking",
    ),
    "marks of two spellings": (
        {"image": "a.png", "conversations": talk("<image> <image 2>")},
        "placeholders",
        "<image 2>",
    ),
    "places of objects": (
        {
            "image": "a.png",
            "conversations": talk("<image>Where?", "At <bbox>."),
            "objects": {"bbox": [[1, 2, 3, 4]]},
        },
        "placeholders",
        "<bbox> in the text",
    ),
    "an unread image": (
        {"photo": "a.png", "conversations": talk()},
        "key not read",
        "its photo is a.png",
    ),
    "another unread image": (
        {"file": "d/a.jpg", "conversations": talk()},
        "key not read",
        "its file is d/a.jpg",
    ),
    "one of two images": (
        {"image": "a.png", "image2": "b.png", "conversations": talk()},
        "key not read",
        "image2",
    ),
    "a struct under another key": (
        {"jpg": {"path": "a.jpg"}, "conversations": talk()},
        "key not read",
        "its jpg",
    ),
    "two image keys": (
        {"image": "a.png", "images": ["b.png"], "conversations": talk()},
        "two values",
        "image and images",
    ),
    "images in and beside": (
        {"image": "a.png", "conversations": talk("<img>b.png</img>?")},
        "two values",
        "1 images stand in",
    ),
    "two conversations": (
        {"conversations": talk(), "messages": roles("?")},
        "two values",
        "conversations and messages",
    ),
    "number without image": (
        {"image": "a.png", "conversations": talk("<image 2>?")},
        "placeholders",
        "<image 2>",
    ),
    "number twice": (
        {"image": "a.png", "conversations": talk("<image 1><image 1>?")},
        "placeholders",
        "expected each",
    ),
    "mark without image": (
        {"conversations": talk("<image 1> What?")},
        "placeholders",
        "<image 1> in the text but 0",
    ),
    "capitals without image": (
        {"conversations": talk("<IMAGE> What?")},
        "placeholders",
        "<IMAGE> in the text but 0",
    ),
    "a name that nobody says": (
        {"image": {"<image_00>": "a.png"}, "conversations": talk()},
        "placeholders",
        "named <image_00>",
    ),
    "placeholder in an answer": (
        {"image": "a.png", "conversations": talk(USER, "<image>")},
        "placeholders",
        "turn 1 is an",
    ),
    "answer not learned": (
        {"conversations": [talk()[0], {**talk()[1], "loss": False}]},
        "not to be learned",
        "turn 1 has loss: False",
    ),
    "answer learned by half": (
        {"conversations": [talk()[0], {**talk()[1], "weight": 0.5}]},
        "not to be learned",
        "weight: 0.5",
    ),
    "entry not learned": (
        {"weight": 0, "conversations": talk()},
        "not to be learned",
        "its weight is 0",
    ),
    "tools": ({"tools": [{"name": "f"}], "messages": roles()}, "key not read", "its tools"),
    "a tool's turn": (
        {"messages": [*roles(), {"role": "tool", "content": "7"}]},
        "unknown speaker",
        "turn 2 is from tool",
    ),
    "a call": (
        {"messages": [roles()[0], {**roles()[1], "tool_calls": [{"id": 1}]}]},
        "key not read",
        "turn 1 has tool_calls",
    ),
    "a thought": (
        {"messages": [roles()[0], {**roles()[1], "reasoning_content": "Hm"}]},
        "key not read",
        "turn 1 has reasoning",
    ),
    "a sound's part": (
        {"messages": roles([{"type": "input_audio", "input_audio": {}}])},
        "key not read",
        "part of type input_audio",
    ),
    "system texts that differ": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "system", "value": "Be long."}, *talk()],
        },
        "two values",
        "a system text and a system turn",
    ),
    "question and answer": (
        {"question": USER, "answer": ANSWER},
        "text empty",
        "its keys are question, answer",
    ),
    "two leading answers": (
        {"conversations": [talk()[1], *talk()[1:], *talk()]},
        "turns out of order",
        "before its answers",
    ),
    "an empty image among others": (
        {"images": ["a.png", None], "conversations": talk()},
        "image missing",
        "1 of its 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_or_misread_is_a_reject_that_names_it(name: str) -> None:
    record, kind, reason = REFUSED[name]
    with pytest.raises(Reject) as error:
        dialogue_of(record)
    assert error.value.kind == kind
    assert reason in error.value.reason
    assert len(error.value.reason) < 600


def test_a_system_text_beside_the_turns_becomes_the_system_turn() -> None:
    dialogue = dialogue_of({"system": "Answer in French.", "conversations": talk()})
    assert dialogue.turns == [{"role": "system", "content": "Answer in French."}, *roles()]
    same = dialogue_of(
        {"system_prompt": "S.", "conversations": [{"from": "system", "value": "S."}, *talk()]}
    )
    assert [turn["role"] for turn in same.turns] == ["system", "user", "assistant"]


def test_a_leading_answer_and_an_unanswered_question_are_dropped_and_told() -> None:
    hello, later = {"from": "gpt", "value": "Hello!"}, {"from": "human", "value": "And then?"}
    assert turns_of([hello, *talk()], None).changed == (LEADING,)
    assert turns_of([*talk(), later], None).changed == (UNANSWERED,)
    both = turns_of([{"from": "system", "value": "S."}, hello, *talk(), later], "a.png")
    assert both.changed == (LEADING, UNANSWERED)
    assert both.turns == [{"role": "system", "content": "S."}, *roles(f"<image>\n{USER}")]


def read(path: Path, images: Path | None = None) -> list[Outcome]:
    source = Llava(files=(str(path),), image_folder=str(images) if images else None, chunk_inputs=2)
    return [
        outcome
        for chunk in source.chunks()
        for outcome in outcomes(source, chunk.payload, SampleTransform())
    ]


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.json", "a.ndjson", "a.json.gz", "array.jsonl", "array.json.gz"]
)
def test_json_lines_and_arrays_are_told_by_what_they_hold(tmp_path: Path, name: str) -> None:
    records = [{"id": number, "conversations": talk(f"{number}?")} for number in range(5)]
    text = (
        json.dumps(records, indent=1)
        if name.startswith("array")
        else "\n\n".join(map(json.dumps, records)) + "\n"
    )
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8-sig") as file:
        file.write(text)
    assert holds_lines(str(tmp_path / name)) is not name.startswith("array")
    found = read(tmp_path / name)
    assert [(outcome.id, outcome.sample.turns[0]["content"]) for outcome in found] == [
        (str(number), f"{number}?") for number in range(5)
    ]


def test_a_gzipped_file_that_was_cut_is_one_error(tmp_path: Path) -> None:
    whole = gzip.compress(
        "".join(json.dumps({"conversations": talk(f"{n}?")}) + "\n" for n in range(500)).encode()
    )
    for name in ("a.jsonl.gz", "a.json.gz"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SourceError, match=r"not readable as gzip .*cut or is broken"):
            read(tmp_path / name)


def test_a_key_that_stands_twice_in_an_object_is_a_reject(tmp_path: Path) -> None:
    lines = [
        '{"image": "a.png", "image": "b.png", "conversations": []}',
        '{"conversations": [{"from": "human", "value": "a", "value": "b"}, {"from": "gpt", "value": "c"}]}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = read(tmp_path / "a.jsonl")
    assert [(outcome.kind, outcome.reason.partition(";")[0]) for outcome in found] == [
        ("two values", "it has the key image twice"),
        ("two values", "it has the key value twice"),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "text": "b"}]}]}',
        '{"image": {"path": "a.png", "path": "b.png"}, "conversations": []}',
        '{"conversations": "[{\\"from\\": \\"human\\", \\"value\\": [{\\"text\\": \\"a\\", \\"text\\": \\"b\\"}]}]"}',
    ],
)
def test_a_key_that_stands_twice_is_a_reject_however_deep(entry: str) -> None:
    with pytest.raises(Reject, match="two values.* twice"):
        dialogue_of(parsed(entry))


def test_ids_that_are_numbers_are_texts(tmp_path: Path) -> None:
    ids = [17, 17.5, 18.0, float("nan"), ""]
    (tmp_path / "a.json").write_text(
        json.dumps([{"id": value, "conversations": talk()} for value in ids])
    )
    assert [outcome.id for outcome in read(tmp_path / "a.json")] == [
        "17",
        "17.5",
        "18",
        "a-00000004",
        "a-00000005",
    ]


def test_paths_may_be_absolute_addresses_or_windows_but_stay_below_the_folder(
    tmp_path: Path,
) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    (images / "sub" / "a b.png").write_bytes(draw("red", 1))
    (tmp_path / "linked").symlink_to(images)
    names = [
        str(images / "sub" / "a b.png"),
        str(tmp_path / "linked" / "sub" / "a b.png"),
        "sub\\a b.png",
        f"file://{images}/sub/a%20b.png",
        "./sub//a b.png",
        str(tmp_path / "images2" / "a.png"),
        "..\\a.png",
        str(images / ".." / "a.png"),
        "file:///etc/passwd",
        "http://x.org/a.png",
    ]
    (tmp_path / "a.json").write_text(
        json.dumps([{"image": name, "conversations": talk(name)} for name in names])
    )
    for folder in (images, tmp_path / "linked"):
        found = read(tmp_path / "a.json", folder)
        inside = [outcome.sample is not None for outcome in found]
        assert inside == [True, folder != images, True, True, True] + [False] * 5
        assert {outcome.kind for outcome in found[5:9]} == {"path leaves its folder"}
        assert (found[9].kind, "--images-are url" in found[9].reason) == ("not fetched", True)
