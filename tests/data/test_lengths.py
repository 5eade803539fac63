"""Promises of the length cache: exact, measured once, renewed when anything that matters changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data import lengths as lengths_module
from pargo_ds.data.conversation import encode, views
from pargo_ds.data.lengths import load_lengths, within_budget
from pargo_ds.data.reader import ShardError
from pargo_ds.data.schema import Sample, SampleError
from pargo_ds.data.shards import read_samples, write_shards

BOTH = DataSection(train="unused", text="captions", caption="both")


@pytest.fixture
def captioned(tmp_path: Path, shard_folder: Path) -> Path:
    """The samples of the shard folder that have pictures, and with them captions."""
    folder = tmp_path / "captioned"
    write_shards((sample for sample in read_samples(shard_folder) if sample.images), folder)
    return folder


def test_lengths_are_those_of_the_encoded_items(captioned: Path, processor: Any, tmp_path: Path) -> None:
    found = load_lengths(captioned, BOTH, processor, tmp_path)
    expected = [
        (position, view, len(encoded.input_ids), len(encoded.pixels))
        for position, sample in enumerate(read_samples(captioned))
        for view, turns in enumerate(views(sample, BOTH))
        for encoded in [encode(sample, turns, processor)]
    ]
    assert list(zip(found.samples, found.views, found.tokens, found.pictures, strict=True)) == expected
    assert set(found.views) == {0, 1}


def test_measured_once_and_again_only_when_the_text_changes(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_lengths(shard_folder, turns_data, processor, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(lengths_module, "measure", lambda *_: pytest.fail("measured a second time"))
        again = load_lengths(shard_folder, turns_data, processor, tmp_path)
    assert np.array_equal(first.tokens, again.tokens)
    longer = type(processor)(processor.tokenizer, image_size=8, visual_tokens=6)
    changed = load_lengths(shard_folder, turns_data, longer, tmp_path)
    assert np.array_equal(changed.tokens, first.tokens + first.pictures)
    assert len(list(tmp_path.iterdir())) == 2  # two caches, nothing half-written beside them


def test_damaged_cache_says_what_to_do(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    load_lengths(shard_folder, turns_data, processor, tmp_path)
    (cache,) = tmp_path.iterdir()
    cache.write_bytes(cache.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged .*; delete it"):
        load_lengths(shard_folder, turns_data, processor, tmp_path)


def test_malformed_sample_is_named_before_training(turns_data: DataSection, processor: Any, tmp_path: Path) -> None:
    write_shards([Sample(id="no turns at all")], tmp_path / "shards")
    with pytest.raises(SampleError, match="sample no turns at all in .*shards: it has no conversation turns"):
        load_lengths(tmp_path / "shards", turns_data, processor, tmp_path)


def test_damaged_shard_is_named(shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    write_shards(read_samples(shard_folder), folder)
    (shard,) = folder.glob("*.mds")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=f"{shard.name} is damaged"):
        load_lengths(folder, turns_data, processor, tmp_path / "cache")


def test_folder_without_index_is_refused(turns_data: DataSection, processor: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder of shards"):
        load_lengths(tmp_path, turns_data, processor, tmp_path)


def test_too_long_is_an_error_that_names_samples_or_a_count(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    found = load_lengths(shard_folder, turns_data, processor, tmp_path)
    budget = int(np.sort(found.tokens)[-3])
    batch = BatchSection(tokens_per_pack=budget, pictures_per_pack=2, packs_per_step=1)
    too_long = np.flatnonzero(found.tokens > budget)
    with pytest.raises(ValueError, match=f"{len(too_long)} of 67 conversations do not fit") as caught:
        within_budget(found, batch, turns_data, shard_folder)
    for item in too_long:
        assert f"sample {item:05} ({found.tokens[item]} tokens" in str(caught.value)
    assert "data.too_long: skip" in str(caught.value)
    skip = turns_data.model_copy(update={"too_long": "skip"})
    kept, skipped = within_budget(found, batch, skip, shard_folder)
    assert skipped == len(too_long)
    assert sorted({*kept.samples, *too_long}) == list(range(67))


def test_too_many_pictures_count_as_too_long(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    found = load_lengths(shard_folder, turns_data, processor, tmp_path)
    batch = BatchSection(tokens_per_pack=9999, pictures_per_pack=1, packs_per_step=1)
    with pytest.raises(ValueError, match="sample 00003 .*2 pictures"):
        within_budget(found, batch, turns_data, shard_folder)


def test_skipping_everything_is_an_error(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    found = load_lengths(shard_folder, turns_data, processor, tmp_path)
    none_fits = replace(found, tokens=found.tokens + 10_000)
    batch = BatchSection(tokens_per_pack=300, pictures_per_pack=9, packs_per_step=1)
    with pytest.raises(ValueError, match="67 of 67 conversations do not fit"):
        within_budget(none_fits, batch, turns_data.model_copy(update={"too_long": "skip"}), shard_folder)
