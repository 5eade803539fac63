"""Bodies of requests: what is read in them, and what is refused with which status and words."""

from __future__ import annotations

import json

import pytest
from chat_requests import asked, data_url

from pargo_ds.serving.chat import read_chat
from pargo_ds.serving.refusals import RequestError


def read(body, **limits):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_chat(data, **{"model": "tiny", "most_tokens": 64, "most_images": 2, **limits})


def test_images_stand_where_the_parts_have_them_each_on_its_line():
    message = {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "data:1"}},
            {"type": "text", "text": "Left?"},
            {"type": "image_url", "image_url": {"url": "data:2", "detail": "low"}},
        ],
    }
    system = {"role": "developer", "content": "Be short."}
    chat = read({"model": "tiny", "messages": [system, message]})
    assert chat.turns == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "<image>\nLeft?\n<image>"},
    ]
    assert chat.addresses == ["data:1", "data:2"]


def test_settings_are_greedy_and_as_long_as_allowed_unless_asked_otherwise():
    body = asked()
    del body["max_tokens"]
    settings = read(body).settings
    assert (settings.temperature, settings.max_tokens, settings.stop) == (0, 64, ())
    full = read(asked(temperature=0.7, top_p=0.9, seed=3, stop="END", max_completion_tokens=5))
    assert full.settings.max_tokens == 5
    assert (full.settings.temperature, full.settings.top_p) == (0.7, 0.9)
    assert (full.settings.seed, full.settings.stop) == (3, ("END",))


def test_an_answer_of_the_official_client_may_be_sent_back_as_it_came():
    before = {
        "role": "assistant", "content": "Red.", "refusal": None, "annotations": None,
        "tool_calls": None, "function_call": None, "audio": None,
    }  # fmt: skip
    body = asked()
    body["messages"] = [*body["messages"], before, {"role": "user", "content": "Sure?"}]
    assert [turn["role"] for turn in read(body).turns] == ["user", "assistant", "user"]


def test_what_changes_no_answer_is_passed_by():
    assert read(asked(user="me", metadata={"a": "b"}, store=True, logprobs=None)).turns


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    "body, status, said",
    [
        (b"", 400, "not JSON"),
        (b"\xff\xfe{}", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "no JSON object"),
        ({}, 400, "model: Field required"),
        ({"model": "tiny"}, 400, "messages: Field required"),
        ({"model": "tiny", "messages": []}, 400, "messages"),
        ({"model": "tiny", "messages": "hello"}, 400, "messages"),
        ({"model": "tiny", "messages": [7]}, 400, "messages.0"),
        ({"model": "tiny", "messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"model": "tiny", "messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}, 404, "there is 'tiny'"),
        (asked(tools=[{"type": "function"}]), 400, "'tools' is not supported"),
        (asked(logprobs=True), 400, "'logprobs' is not supported"),
        (asked(n=2), 400, "n: "),
        (asked(max_tokens=65), 400, "at most 64"),
        (asked(max_tokens=0), 400, "max_tokens"),
        (asked(max_tokens="8"), 400, "max_tokens"),
        (asked(temperature=-1), 400, "temperature"),
        (asked(top_p=0), 400, "top_p"),
        (b'{"model": "tiny", "messages": [], "temperature": NaN}', 400, "messages"),
        (asked(stop=["a", "b", "c", "d", "e"]), 400, "stop"),
        (asked(stop=""), 400, "stop"),
        (asked(stream="yes"), 400, "stream"),
        (asked(seed=2**80), 400, "seed"),
        (asked(response_format={"type": "json_schema", "json_schema": {}}), 400, "response_format"),
        (asked(response_format={"type": "json_object"}), 400, "response_format is not supported"),
        (asked(text="an <image> here"), 400, "parts of type image_url"),
        (asked(text="\ud800"), 400, "surrogate"),
        ({"model": "tiny", "messages": [{"role": "assistant", "content": "x"}]}, 400, "last message"),
        ({"model": "tiny", "messages": [{"role": "system", "content": [IMAGE]}]}, 400, "the user"),
        ({"model": "tiny", "messages": [{"role": "user", "content": [IMAGE] * 3}]}, 400, "3 images"),
        ({"model": "tiny", "messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
         400, "messages.0.content"),
        ({"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         400, "image_url"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(body, status, said):
    with pytest.raises(RequestError) as error:
        read(body)
    assert error.value.status == status
    assert said in str(error.value)
    assert error.value.body()["error"]["type"] == "invalid_request_error"


def test_long_values_are_not_repeated_to_the_client():
    with pytest.raises(RequestError) as error:
        read({"model": "x" * 10_000, "messages": [{"role": "user", "content": "x"}]})
    assert len(str(error.value)) < 300
    with pytest.raises(RequestError) as error:
        read(asked(image=data_url(), **{"y" * 10_000: 1}))
    assert len(str(error.value)) < 300


def test_captioning_takes_the_refusal_of_a_schema_as_one():
    from pargo_ds.captioning.ask.verdict import verdict

    with pytest.raises(RequestError) as error:
        read(asked(response_format={"type": "json_schema", "json_schema": {"name": "x"}}))
    body = json.dumps(error.value.body()).encode()
    assert verdict(error.value.status, {}, body).kind == "no_format"
