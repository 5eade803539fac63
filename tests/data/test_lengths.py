"""Promises of the length cache: exact, measured once, renewed when anything that matters changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import conversations_of, encode
from pargo_ds.data.packing import lengths as lengths_module
from pargo_ds.data.packing import measure as measure_module
from pargo_ds.data.packing.lengths import (
    Lengths,
    find_side_car,
    load_lengths,
    within_budget,
    write_side_car,
)
from pargo_ds.data.shards.folder import open_folder
from pargo_ds.data.shards.mds import read_samples, write_shards
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import SampleError, ShardError

BOTH = DataSection(train="unused", text="captions", caption="both")


@pytest.fixture
def captioned(tmp_path: Path, shard_folder: Path) -> Path:
    """The samples of the shard folder that have images, and with them captions."""
    folder = tmp_path / "captioned"
    write_shards((sample for sample in read_samples(shard_folder) if sample.images), folder)
    return folder


def all_counts(lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and images of all items."""
    return lengths.counts(np.arange(len(lengths)))


@pytest.mark.parametrize("processes, compression", [(1, "none"), (3, "none"), (1, "zstd")])
def test_lengths_are_those_of_the_encoded_items(
    captioned: Path,
    processor: Any,
    tmp_path: Path,
    processes: int,
    compression: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure_module, "ALONE_BELOW", 1)
    monkeypatch.setattr(measure_module, "default_processes", lambda: processes)
    write_shards(
        read_samples(captioned), tmp_path / "written", shard_bytes=1 << 12, compression=compression
    )
    found = load_lengths(
        open_folder(tmp_path / "written", tmp_path / "cache"), BOTH, processor, tmp_path
    )
    expected = [
        (position, view, len(encoded.input_ids), len(encoded.pixels))
        for position, sample in enumerate(read_samples(captioned))
        for view, turns in enumerate(conversations_of(sample, BOTH))
        for encoded in [encode(sample, turns, processor)]
    ]
    items = np.arange(len(found))
    columns = [*found.conversations(items), *found.counts(items)]
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert {view for _, view, _, _ in expected} == {0, 1}
    images = [image for sample in read_samples(captioned) for image in sample.images]
    assert found.columns.image_sizes.tolist() == [[20, 12]] * len(images)


def test_measured_once_and_again_only_when_the_text_changes(
    shard_folder: Path,
    turns_data: DataSection,
    processor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = open_folder(shard_folder)
    first = load_lengths(folder, turns_data, processor, tmp_path)
    more_tokens = type(processor)(processor.tokenizer, image_size=16, visual_tokens=6)
    with monkeypatch.context() as patch:
        patch.setattr(lengths_module, "measure", lambda *_: pytest.fail("measured a second time"))
        again = load_lengths(folder, turns_data, processor, tmp_path)
        longer = load_lengths(folder, turns_data, more_tokens, tmp_path)
    (tokens, images), (same, _), (more, _) = (
        all_counts(first),
        all_counts(again),
        all_counts(longer),
    )
    assert np.array_equal(same, tokens)
    assert np.array_equal(more, tokens + images)
    assert len(list(tmp_path.iterdir())) == 1  # one cache, nothing half-written beside it
    prompted = type(processor)(
        processor.tokenizer, image_size=8, visual_tokens=5, system_prompt="Be brief."
    )
    assert all_counts(load_lengths(folder, turns_data, prompted, tmp_path))[0].sum() > tokens.sum()
    assert len(list(tmp_path.iterdir())) == 2


def test_side_car_goes_with_the_shards(
    shard_folder: Path,
    turns_data: DataSection,
    processor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Written once with the shards, found wherever they are moved, before the run's own cache."""
    folder = tmp_path / "written"
    shutil.copytree(shard_folder, folder)
    place = write_side_car(open_folder(folder), turns_data, processor)
    assert place.parent == folder / "lengths"
    described = json.loads((place / "lengths.json").read_text())
    assert described["conversations"] == 67
    assert described["texts"] == {"text": "turns"}
    expected = all_counts(
        load_lengths(open_folder(shard_folder), turns_data, processor, tmp_path / "cache")
    )
    folder.rename(tmp_path / "moved")
    monkeypatch.setattr(
        lengths_module, "measure", lambda *_: pytest.fail("measured though there is a side-car")
    )
    moved = open_folder(tmp_path / "moved")
    found = load_lengths(moved, turns_data, processor, tmp_path / "unused")
    assert np.array_equal(all_counts(found), expected)
    assert isinstance(found.columns.text_tokens, np.memmap)
    assert not (tmp_path / "unused").exists()
    write_side_car(moved, turns_data, processor)  # there already: nothing to do
    assert find_side_car(tmp_path / "moved/lengths", moved.index_sha256, turns_data) is not None
    assert find_side_car(tmp_path / "moved/lengths", moved.index_sha256, BOTH) is None


@pytest.mark.parametrize("fault", ["cut", "another", "missing", "not JSON"])
def test_damaged_cache_says_what_to_do(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path, fault: str
) -> None:
    load_lengths(open_folder(shard_folder), turns_data, processor, tmp_path)
    (cache,) = tmp_path.iterdir()
    column = cache / "text_tokens.npy"
    if fault == "cut":
        column.write_bytes(column.read_bytes()[:140])
    elif fault == "another":
        np.save(column, np.arange(5, dtype=np.uint32))
    elif fault == "missing":
        column.unlink()
    else:
        (cache / "lengths.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged .*; delete it"):
        load_lengths(open_folder(shard_folder), turns_data, processor, tmp_path)


def test_killed_process_is_an_error_and_leaves_nothing(
    shard_folder: Path,
    turns_data: DataSection,
    processor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure_module, "ALONE_BELOW", 1)
    monkeypatch.setattr(measure_module, "default_processes", lambda: 2)
    monkeypatch.setattr(
        measure_module, "encode_text", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(RuntimeError, match="a process that measured .*train was killed"):
        load_lengths(open_folder(shard_folder), turns_data, processor, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_malformed_sample_is_named_before_training(
    turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    write_shards([Sample(id="no turns at all")], tmp_path / "shards")
    with pytest.raises(
        SampleError, match="sample no turns at all in .*shards: it has no conversation turns"
    ):
        load_lengths(open_folder(tmp_path / "shards"), turns_data, processor, tmp_path)


def test_damaged_shard_is_named(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    write_shards(read_samples(shard_folder), folder)
    (shard,) = folder.glob("*.mds")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=f"{shard.name} is damaged"):
        load_lengths(open_folder(folder), turns_data, processor, tmp_path / "cache")


def test_folder_without_index_is_refused(
    turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is not a folder of shards"):
        load_lengths(open_folder(tmp_path), turns_data, processor, tmp_path)


def test_refused_samples_are_an_error_that_names_the_first_or_a_count(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    folder = open_folder(shard_folder)
    texts = turns_data.model_copy(update={"text": "captions", "caption": "coarse"})
    with pytest.raises(
        ValueError,
        match=r"sample 00002 .*no coarse caption.* data\.refused: skip leaves such samples out",
    ):
        load_lengths(folder, texts, processor, tmp_path)
    found = load_lengths(folder, texts.model_copy(update={"refused": "skip"}), processor, tmp_path)
    imaged = [number for number in range(67) if number % 5 != 2]
    assert found.refused == 67 - len(imaged)
    assert found.conversations(np.arange(len(found)))[0].tolist() == imaged
    assert (
        load_lengths(
            folder, turns_data.model_copy(update={"refused": "skip"}), processor, tmp_path
        ).refused
        == 0
    )


def test_too_long_is_an_error_that_names_samples_or_a_count(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    folder = open_folder(shard_folder)
    found = load_lengths(folder, turns_data, processor, tmp_path)
    tokens, _ = all_counts(found)
    budget = int(np.sort(tokens)[-3])
    batch = BatchSection(tokens_per_pack=budget, images_per_pack=2, packs_per_step=1)
    too_long = np.flatnonzero(tokens > budget)
    with pytest.raises(
        ValueError, match=f"{len(too_long)} of 67 conversations do not fit"
    ) as caught:
        within_budget(found, batch, turns_data, folder)
    for item in too_long:
        assert f"sample {item:05} ({tokens[item]} tokens" in str(caught.value)
    assert "data.too_long: skip" in str(caught.value)
    skip = turns_data.model_copy(update={"too_long": "skip"})
    kept, skipped = within_budget(found, batch, skip, folder)
    assert skipped == len(too_long)
    samples, _ = kept.conversations(np.arange(len(kept)))
    assert sorted({*samples.tolist(), *too_long.tolist()}) == list(range(67))
    assert all_counts(kept)[0].tolist() == tokens[samples].tolist()
    assert kept.items_before(np.array([0, 40, 67])).tolist() == [
        0,
        40 - (too_long < 40).sum(),
        len(kept),
    ]


def test_too_many_images_count_as_too_long(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    folder = open_folder(shard_folder)
    found = load_lengths(folder, turns_data, processor, tmp_path)
    batch = BatchSection(tokens_per_pack=9999, images_per_pack=1, packs_per_step=1)
    with pytest.raises(ValueError, match="sample 00003 .*2 images"):
        within_budget(found, batch, turns_data, folder)


def test_skipping_everything_is_an_error(
    shard_folder: Path, turns_data: DataSection, processor: Any, tmp_path: Path
) -> None:
    folder = open_folder(shard_folder)
    found = load_lengths(folder, turns_data, processor, tmp_path)
    none_fits = replace(
        found, columns=found.columns._replace(text_tokens=found.columns.text_tokens + 10_000)
    )
    batch = BatchSection(tokens_per_pack=300, images_per_pack=9, packs_per_step=1)
    with pytest.raises(ValueError, match="67 of 67 conversations do not fit"):
        within_budget(none_fits, batch, turns_data.model_copy(update={"too_long": "skip"}), folder)
