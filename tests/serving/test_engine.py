"""Batches in the model: equal to single answers, and faults that stay in their row."""

from __future__ import annotations

import pytest
import torch
from tiny import COLOURS, draw

from pargo_ds.data.images import read_image
from pargo_ds.evaluation.answers import generate_answers
from pargo_ds.serving.chat import Chat, Settings
from pargo_ds.serving.engine import Engine, Progress, Row
from pargo_ds.serving.refusals import RequestError

EIGHT = Settings(max_tokens=8)


def rows_of(engine: Engine, settings: Settings = EIGHT) -> list[Row]:
    """Seven questions of unequal length, of no, one and two images; what they hear is in `heard`."""
    rows = []
    for number in range(7):
        images = [draw(COLOURS[(number + k) % 6], number) for k in range(number % 3)]
        turns = [{"role": "user", "content": "<image>\n" * len(images) + "What? " * (number + 1)}]
        ids = engine.ids(Chat(turns, [], settings, False, False))
        heard: list = []
        row = Row(ids, [engine.pixels(data) for data in images], settings, False, heard.append)
        row.heard = heard
        rows.append(row)
    return rows


def answers(rows: list[Row]) -> list[Progress]:
    return [row.heard[-1] for row in rows]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_answers_as_single_requests_do(engine, temperature):
    settings = Settings(max_tokens=8, temperature=temperature, seed=7)
    together, alone = rows_of(engine, settings), rows_of(engine, settings)
    engine.run(together)
    for row in alone:
        engine.run([row])
    assert answers(together) == answers(alone)
    assert len({progress.text for progress in answers(together)}) > 3  # they do differ


def test_answers_are_those_of_the_evaluation(engine):
    rows = rows_of(engine)
    engine.run(rows)
    conversations, images = [], []
    for number in range(7):
        shown = [draw(COLOURS[(number + k) % 6], number) for k in range(number % 3)]
        images.append([read_image(data) for data in shown])
        text = "<image>\n" * len(shown) + "What? " * (number + 1)
        conversations.append([{"role": "user", "content": text}])
    wanted = generate_answers(
        engine.model, engine.processor, conversations, images, max_new_tokens=8
    )
    assert [progress.text for progress in answers(rows)] == wanted


def test_each_row_has_its_own_limit(engine):
    rows = rows_of(engine)
    whole = rows_of(engine)
    for number, row in enumerate(rows):
        row.settings = Settings(max_tokens=1 + number)
    engine.run(rows)
    engine.run(whole)
    for number, (short, long) in enumerate(zip(answers(rows), answers(whole), strict=True)):
        assert short.tokens == min(1 + number, long.tokens)
        assert long.text.startswith(short.text.rstrip("\ufffd"))


def test_a_row_that_nobody_waits_for_is_not_answered(engine):
    rows = rows_of(engine)
    rows[1].gone = True
    engine.run(rows)
    assert rows[1].heard == []
    assert all(row.told for row in rows if row is not rows[1])


def test_a_batch_too_large_for_memory_is_halved_until_it_fits(engine, monkeypatch):
    wanted = rows_of(engine)
    engine.run(wanted)
    generate, sizes = engine.model.generate, []

    def small_memory(input_ids, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("full")
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(engine.model, "generate", small_memory)
    rows = rows_of(engine)
    engine.run(rows)
    assert answers(rows) == answers(wanted)
    assert max(size for size in sizes if size <= 2) == 2


def test_a_request_that_does_not_fit_alone_is_told_so_and_the_others_are_answered(
    engine, monkeypatch
):
    rows = rows_of(engine)
    generate, longest = engine.model.generate, max(len(row.ids) for row in rows)

    def small_memory(input_ids, **kwargs):
        if input_ids.shape[1] >= longest:
            raise torch.OutOfMemoryError("full")
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(engine.model, "generate", small_memory)
    engine.run(rows)
    failed = [row for row in rows if isinstance(row.heard[-1], RequestError)]
    assert len(failed) == 1
    assert failed[0].heard[-1].status == 503
    assert len(failed[0].ids) == longest


def test_a_fault_of_the_model_is_told_without_its_words(engine, monkeypatch):
    def broken(**kwargs):
        raise RuntimeError("secret /path/of/the/server")

    monkeypatch.setattr(engine.model, "generate", broken)
    rows = rows_of(engine)
    engine.run(rows)
    for row in rows:
        assert row.heard[-1].status == 500
        assert "secret" not in str(row.heard[-1])
    monkeypatch.undo()
    again = rows_of(engine)
    engine.run(again)
    assert all(isinstance(progress, Progress) for progress in answers(again))


def test_prompt_and_answer_must_fit_into_the_context(engine):
    engine.context = 20
    turns = [{"role": "user", "content": "What? " * 50}]
    with pytest.raises(RequestError) as error:
        engine.ids(Chat(turns, [], Settings(max_tokens=8), False, False))
    assert (error.value.status, error.value.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize("data", [b"", b"no image", draw("red", 0)[:100], b"%!PS-Adobe-3.0"])
def test_what_is_no_image_is_refused(engine, data):
    with pytest.raises(RequestError) as error:
        engine.pixels(data)
    assert error.value.status == 400


def test_a_small_file_that_claims_many_pixels_is_refused_unread(engine, monkeypatch):
    monkeypatch.setattr("pargo_ds.serving.engine.MOST_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr("pargo_ds.serving.engine.read_image", lambda data: pytest.fail("decoded"))
    with pytest.raises(RequestError, match="64 x 64 pixels"):
        engine.pixels(draw("red", 0))
