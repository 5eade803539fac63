"""Mixtures of other projects: InternVL's meta JSON and LLaVA-NeXT's YAML, each data set with its
folder and share.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pargo_ds.data.sources.recipes import Ingredient, read_recipe
from pargo_ds.errors import SourceError


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.json"):
        Path(name).write_text("[]")


def test_internvls_meta_gives_folders_and_repeats() -> None:
    meta = {
        "vqa v2": {
            "root": "coco/",
            "annotation": "a.jsonl",
            "data_augment": False,
            "repeat_time": 2,
            "length": 7,
        },
        "text": {"annotation": "b.json", "repeat_time": 0.5},
        "abs": {"root": "/data/x", "annotation": "b.json"},
    }
    Path("meta.json").write_text(json.dumps(meta))
    assert read_recipe("meta.json", "images") == [
        Ingredient("vqa_v2", "a.jsonl", "images/coco", 2.0),
        Ingredient("text", "b.json", "images", 0.5),
        Ingredient("abs", "b.json", "/data/x", 1.0),
    ]
    assert read_recipe("meta.json", None)[0].image_folder == "coco"


def test_llava_nexts_yaml_gives_files_and_shares() -> None:
    datasets = [{"json_path": "a.jsonl", "sampling_strategy": "all"},
                {"json_path": "b.json", "sampling_strategy": "random:10%"}]  # fmt: skip
    Path("mix.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    assert read_recipe("mix.yaml", "images") == [
        Ingredient("a", "a.jsonl", "images", 1.0), Ingredient("b", "b.json", "images", 0.1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": {"annotation": "a.jsonl"}, "a": {"annotation": "b.json"}}', "lists a twice"),
        (
            '{"a b": {"annotation": "a.jsonl"}, "a_b": {"annotation": "b.json"}}',
            "two data sets are named a_b",
        ),
        ('{"a": {"annotation": "none.json"}}', "its annotation none.json is not a file"),
        (
            '{"a": {"annotation": "a.jsonl", "repeat_time": 0}}',
            "repeat_time 0; expected a number above 0",
        ),
        ('{"a": {"annotation": "a.jsonl", "root": 7}}', "root 7; expected a folder"),
        (
            '{"datasets": [{"json_path": "a.jsonl", "sampling_strategy": "first:100"}]}',
            "sampling_strategy first:100",
        ),
        (
            '{"a": {"annotation": "a.jsonl", "annotation": "b.json"}}',
            "it has the key annotation twice",
        ),
        (
            '{"datasets": [{"json_path": "a.jsonl", "json_path": "b.json"}]}',
            "it has the key json_path twice",
        ),
        (
            '{"a": {"annotation": "a.jsonl", "repeat": 2}}',
            "a has the keys repeat, which are not read",
        ),
        (
            '{"datasets": [{"json_path": "a.jsonl", "sampling_stategy": "all"}]}',
            "keys sampling_stategy, which are not",
        ),
        ('{"datasets": ["a.jsonl"]}', "data set 1 is a.jsonl"),
        ("[]", "no list of data sets"),
    ],
)
def test_what_cannot_be_built_as_meant_is_one_error(text: str, said: str) -> None:
    Path("meta.json").write_text(text)
    with pytest.raises(SourceError, match=said):
        read_recipe("meta.json", None)
