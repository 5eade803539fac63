"""The text of an answer while it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargo_ds.serving.writing import Writing, certain

END = 256


def of_bytes(tokens: list[int]) -> str:
    """A tokenizer of bytes: the worst one for characters of several bytes."""
    return bytes(tokens).decode(errors="replace")


def written(text: str, limit: int = 10**6, shown: bool = True, stop=(), end: bool = True):
    """(texts after each token, the writing)."""
    writing = Writing(of_bytes, {END}, limit, stop, shown)
    seen = []
    for token in [*text.encode(), *([END] if end else [])]:
        writing.add(token)
        seen.append(writing.text)
        if writing.reason is not None:
            break
    return seen, writing


@given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_what_was_shown_is_never_taken_back(text, stop):
    seen, writing = written(text, stop=stop)
    assert writing.reason == "stop"
    for one, later in zip(seen, seen[1:], strict=False):
        assert later.startswith(one)


@given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_who_reads_along_reads_what_comes_in_one_piece(text, stop):
    assert written(text, stop=stop)[1].text == written(text, stop=stop, shown=False)[1].text


@given(st.text())
def test_without_stop_strings_the_whole_text_is_written(text):
    seen, writing = written(text)
    assert writing.text == text.strip()
    assert len(writing.tokens) == len(text.encode())


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=3))
def test_nothing_from_the_first_stop_string_on_is_written(text, stop):
    _, writing = written(text, stop=[stop])
    assert writing.text == text.partition(stop)[0]


def test_the_limit_ends_an_answer_and_says_so():
    _, writing = written("abcdef", limit=3)
    assert (writing.text, writing.reason, len(writing.tokens)) == ("abc", "length", 3)


def test_an_end_at_the_limit_is_an_end():
    _, writing = written("abc", limit=4)
    assert writing.reason == "stop"


@pytest.mark.parametrize(
    "raw, stop, shown",
    [
        ("a dog En", ["END"], "a dog En"),
        ("a dog E", ["END"], "a dog"),
        ("a dog", ["gone", "dogs"], "a"),
        ("caf\ufffd", [], "caf"),
        ("  a b  ", [], "a b"),
    ],
)
def test_what_may_yet_change_is_held_back(raw, stop, shown):
    assert certain(raw, stop) == shown
