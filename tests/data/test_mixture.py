"""Promises of mixtures: each stream comes exactly as often as the run file says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loading import ids

from pargo_ds.config import DataSection
from pargo_ds.data.loader import PackLoader
from pargo_ds.data.shards.mds import read_samples, write_shards

pytestmark = pytest.mark.timeout(120)


def test_mixture_by_repeats_comes_as_often_as_it_says(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """67 samples half an epoch each, 9 others 2.5 times, and the captions of the first besides:
    over two epochs.
    """
    others = [replace(sample, id=f"other {sample.id}") for sample in read_samples(shard_folder)][:9]
    write_shards(others, tmp_path / "others", shard_bytes=1 << 12)
    with_images = [sample for sample in read_samples(shard_folder) if sample.images]
    write_shards(with_images, tmp_path / "captioned")
    data = DataSection(
        train=[
            {"path": str(shard_folder), "repeat": 0.5},
            {"path": str(tmp_path / "others"), "repeat": 2.5},
            {"path": str(tmp_path / "captioned"), "text": "captions", "caption": "coarse"},
            {
                "path": str(tmp_path / "captioned"),
                "text": "captions",
                "caption": "detailed",
                "repeat": 2,
            },
        ],
        text="turns",
    )
    loader = PackLoader(**{**options, "data": data}, workers=2)
    epochs = [loader.steps_per_epoch(0), loader.steps_per_epoch(1)]
    found = list(itertools.islice(loader.steps(), sum(epochs)))
    seen = [[list(batch.sample_ids) for batch in step] for step in found]
    captioned = {sample.id for sample in with_images}
    assert ids(seen) == {
        **{f"{number:05}": 1 + (6 if f"{number:05}" in captioned else 0) for number in range(67)},
        **{f"other {number:05}": 5 for number in range(9)},
    }
    in_first = ids(seen[: epochs[0]])
    halves = {
        name: times - (3 if name in captioned else 0)
        for name, times in in_first.items()
        if name[0] != "o"
    }
    assert sum(halves.values()) == 33
    assert set(halves.values()) == {0, 1}
    assert {times for name, times in in_first.items() if name[0] == "o"} == {2, 3}


def test_mixture_by_weights_has_exact_counts(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    others = [replace(sample, id=f"other {sample.id}") for sample in read_samples(shard_folder)][:9]
    write_shards(others, tmp_path / "others")
    weighted = [
        {"path": str(shard_folder), "weight": 1},
        {"path": str(tmp_path / "others"), "weight": 3},
    ]
    data = DataSection(train=weighted, text="turns", epoch_items=40)
    loader = PackLoader(**{**options, "data": data}, workers=0)
    for epoch in range(2):
        steps = itertools.islice(loader.steps(), loader.steps_per_epoch(epoch))
        seen = ids([batch.sample_ids for batch in step] for step in steps)
        assert sum(times for name, times in seen.items() if name[0] == "o") == 30
        assert {times for name, times in seen.items() if name[0] == "o"} == {3, 4}
        assert sum(times for name, times in seen.items() if name[0] != "o") == 10
