"""Paths and hub names are taken as people write them, or refused: never a folder of the name `~` or
`$SCRATCH`.
"""

import pytest

from pargo_ds.addresses import expand_path, model_name


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch/ada")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("~/runs", "/home/ada/runs"),
        ("$SCRATCH/runs", "/scratch/ada/runs"),
        ("${SCRATCH}/runs", "/scratch/ada/runs"),
        ("runs", "runs"),
        ("data/a~b", "data/a~b"),
        ("s3://bucket/$x/~y", "s3://bucket/$x/~y"),
    ],
)
def test_home_and_variables_of_a_path_are_replaced(written, taken):
    assert expand_path(written) == taken


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("$NOWHERE/runs", r"\$NOWHERE of the path .* is not set"),
        ("${NOWHERE}", "is not set"),
        ("~no-such-user/runs", "a user whom this machine does not know"),
        (" ", "the path is empty"),
    ],
)
def test_a_path_that_would_become_another_folder_is_refused(written, said):
    with pytest.raises(ValueError, match=said):
        expand_path(written)


@pytest.mark.parametrize(
    "written",
    [
        "hf-hub:owner/model", "hf_hub:owner/model", "hf://owner/model", "https://huggingface.co/owner/model",
        "https://huggingface.co/owner/model/", "https://hf.co/owner/model", "owner/model",
    ],
)  # fmt: skip
def test_a_name_on_the_hub_is_taken_in_every_form(written):
    assert model_name(written) == "owner/model"


def test_a_folder_of_a_model_is_a_path():
    assert model_name("~/llm") == "/home/ada/llm"
