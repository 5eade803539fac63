"""Answers are read leniently, prompts strictly; what an endpoint says is judged right."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from caption_runs import squares

from pargo_ds.captioning.answer import Part, cell_of, detailed_caption, read_answer
from pargo_ds.captioning.ask.captions import job_of
from pargo_ds.captioning.ask.endpoint import check_address, read_key
from pargo_ds.captioning.ask.prompt import DEFAULT, read_prompt
from pargo_ds.captioning.ask.request import Job, Parameters, request_body, request_key
from pargo_ds.captioning.ask.truth import truth_caption
from pargo_ds.captioning.ask.verdict import retry_after, verdict
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import CaptionError, ConfigError

GOOD = {"global": "A dog.", "parts": [{"where": "left", "what": "A dog."}]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=1)}\n```",
        f"Here it is: {json.dumps(GOOD)} I hope it helps {{you}}.",
        json.dumps(
            {**GOOD, "parts": [{"where": "on the Left side", "what": " A dog. ", "sure": 1}]}
        ),
    ],
)
def test_captions_are_found_in_what_models_answer(text: str) -> None:
    caption = read_answer(text, structured=True)
    assert (caption.whole, caption.parts) == ("A dog.", (Part("left", "A dog."),))


def test_parts_that_are_none_are_left_out_and_noted() -> None:
    parts = [{"where": "somewhere", "what": "A dog."}, "A cat.", {"where": "top", "what": ""}]
    caption = read_answer(json.dumps({"global": "Two.", "parts": parts}), structured=True)
    assert caption.parts == ()
    assert len(caption.notes) == 3


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no JSON object"),
        ('{"global": "A do', "JSON is broken"),
        ('{"caption": "A dog."}', "no text under global"),
        ('{"global": "A dog.", "parts": "none"}', "parts is a str"),
    ],
)
def test_what_is_no_caption_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_answer(text, structured=True)


@pytest.mark.parametrize(
    "where, cell",
    [("Top-Left", "top left"), ("upper right", "top right"), ("at the bottom", "bottom"),
     ("in the center of the image", "centre"), ("lower left corner", "bottom left"), ("sky", None)],
)  # fmt: skip
def test_names_of_cells(where: str, cell: str | None) -> None:
    assert cell_of(where) == cell


def test_detailed_caption_names_each_place_once() -> None:
    parts = [Part("top left", "A dog at the top left."), Part("right", "NASA's rocket.")]
    said = detailed_caption("Two things.", parts)
    assert said == "Two things. A dog at the top left. On the right: NASA's rocket."


def answered(status: int, body: object, **headers: str):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return verdict(status, headers, data)


@pytest.mark.parametrize(
    "status, body, kind",
    [
        (429, {"error": {"message": "slow down"}}, "again"),
        (429, {"error": {"code": "insufficient_quota", "message": "none left"}}, "stop"),
        (500, b"<html>", "again"),
        (503, b"", "again"),
        (408, b"", "again"),
        (401, {"error": {"message": "key"}}, "stop"),
        (402, {"error": "no money"}, "stop"),
        (404, b"", "stop"),
        (307, b"", "stop"),
        (400, {"error": {"message": "image too small"}}, "rejected"),
        (413, b"", "rejected"),
        (400, {"error": {"message": "response_format is not supported"}}, "no_format"),
        (422, {"detail": "json_schema"}, "no_format"),
        (200, b'{"choices": [', "unknown"),
        (200, {}, "answered"),
    ],
)
def test_what_an_endpoint_says_is_judged(status: int, body: object, kind: str) -> None:
    assert answered(status, body).kind == kind


@pytest.mark.parametrize(
    "choice, outcome",
    [
        ({"message": {"content": "A dog."}, "finish_reason": "stop"}, "ok"),
        ({"message": {"content": "A do"}, "finish_reason": "length"}, "length"),
        ({"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}, "refused"),
        ({"message": {"content": "A"}, "finish_reason": "content_filter"}, "blocked"),
        ({"message": {"content": ""}, "finish_reason": "stop"}, "blocked"),
        ({"message": None}, "blocked"),
    ],
)
def test_outcomes_of_answers(choice: dict, outcome: str) -> None:
    found = answered(200, {"choices": [choice], "usage": {"prompt_tokens": 3}})
    assert (found.kind, found.outcome, found.usage) == ("answered", outcome, None)


def test_gemini_s_empty_choices_are_an_outcome() -> None:
    assert answered(200, {"choices": []}).outcome == "blocked"


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": "3"}) == 3
    date = formatdate(time.time() + 60, usegmt=True)
    assert 50 < retry_after({"retry-after": date}) <= 61
    for nonsense in ("soon", "-1", "99999", "", "nan"):
        assert retry_after({"retry-after": nonsense}) is None


def test_the_key_of_a_request_stands_for_all_that_is_asked(tmp_path: Path) -> None:
    job, prompt, parameters = Job("a", b"image", "alt"), read_prompt(), Parameters("m")
    key = request_key(job, prompt, parameters)
    assert key == request_key(Job("other id", b"image", "other alt"), prompt, parameters)
    assert key != request_key(Job("a", b"imagf"), prompt, parameters)
    for changes in ({"model": "n"}, {"longest_side": 9}, {"max_tokens": 9}, {"temperature": 1.0}):
        other = Parameters(**{**vars(parameters), **changes})
        assert key != request_key(job, prompt, other)
    hinting = tmp_path / "prompt.yaml"
    hinting.write_text("id: h\nversion: 1\nuser: 'It is called {coarse}.'\n")
    keys = {request_key(Job("a", b"image", alt), read_prompt(hinting), parameters) for alt in "ab"}
    assert len(keys) == 2


def test_a_comment_in_a_prompt_changes_nothing_and_a_word_does(tmp_path: Path) -> None:
    text = DEFAULT.read_text()
    for name, content in (("c", f"# more\n{text}"), ("w", text.replace("people", "persons"))):
        (tmp_path / name).write_text(content)
    digests = [read_prompt(path).digest for path in (DEFAULT, tmp_path / "c", tmp_path / "w")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    "text, said",
    [
        ("id: x\nversion: 1\nuser: u\nsytem: s\n", "sytem: unknown key; did you mean system"),
        ("id: x\nversion: one\nuser: u\n", "version"),
        ("id: x\nversion: 1\nuser: ' '\n", "user is empty"),
        ("[", "not valid YAML"),
    ],
)
def test_prompt_files_with_faults_name_them(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises((CaptionError, ConfigError), match=said):
        read_prompt(tmp_path / "p.yaml")


def test_images_are_sent_small_and_as_what_they_are() -> None:
    job = job_of(squares(1, 100)[0])
    body = request_body(job, read_prompt(), Parameters("m", longest_side=64))
    assert body["messages"][1]["content"][0]["image_url"]["url"].startswith(
        "data:image/jpeg;base64"
    )


@pytest.mark.parametrize(
    "address", ["api.openai.com", "ftp://x/v1", "https://u:secret@x/v1", "https://x/v1?key=secret"]
)
def test_addresses_that_are_none_or_hold_a_key_are_refused(address: str) -> None:
    with pytest.raises(CaptionError) as told:
        check_address(address)
    assert "secret" not in str(told.value)


def test_a_key_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(CaptionError, match="MY_KEY is empty"):
        read_key("MY_KEY")
    monkeypatch.setenv("MY_KEY", "sk-a b")
    with pytest.raises(CaptionError, match="holds blanks") as told:
        read_key("MY_KEY")
    assert "sk-" not in str(told.value)
    assert read_key(None) is None


def test_truth_is_told_of_scenes_only() -> None:
    things = [
        {"name": "apple", "colour": "red", "place": "in the centre"},
        {"name": "hourglass", "colour": None, "place": "at the top left"},
        {"name": "dog", "colour": "black", "place": "on the right"},
    ]
    caption = truth_caption(Sample(id="s", images=[b"x"], meta={"objects": things}))
    assert caption.whole == (
        "A large red apple in the centre and two small objects. The small ones are an hourglass, a "
        "black dog."
    )
    assert caption.parts[1] == Part("top left", "A small hourglass.")
    with pytest.raises(CaptionError, match="no composed scene"):
        truth_caption(Sample(id="s", images=[b"x"]))
