"""Side-cars and the loader over an object store: what is stored with the shards is used, and the
stream is the same.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_store import ObjectStore

from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.loader import PackLoader
from pargo_ds.data.packing import lengths as lengths_module
from pargo_ds.data.packing.lengths import load_lengths, write_side_car
from pargo_ds.data.shards.folder import open_folder, upload_folder
from pargo_ds.data.validation import validation_batches

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def address(object_store: ObjectStore, shard_folder: Path) -> str:
    upload_folder(shard_folder, object_store.address("train"))
    return object_store.address("train")


def test_side_car_in_the_store_serves_every_machine(
    address: str,
    turns_data: DataSection,
    processor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = write_side_car(open_folder(address, tmp_path / "tool"), turns_data, processor)
    assert str(where).startswith(f"{address}/lengths/")
    monkeypatch.setattr(
        lengths_module, "measure", lambda *_: pytest.fail("measured though there is a side-car")
    )
    elsewhere = open_folder(address, tmp_path / "another machine")
    found = load_lengths(elsewhere, turns_data, processor, tmp_path / "run")
    assert len(found) == 67
    assert not list(elsewhere.local.glob("*.mds"))


def test_small_folder_without_side_car_is_measured_and_a_large_one_refused(
    address: str,
    shard_folder: Path,
    turns_data: DataSection,
    processor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = open_folder(address, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(lengths_module, "LARGEST_TO_MEASURE", 1000)
        with pytest.raises(
            ValueError, match="has no lengths for this tokenizer.*build_shards.py lengths RUN.yaml"
        ):
            load_lengths(folder, turns_data, processor, tmp_path / "run")
    local = load_lengths(open_folder(shard_folder), turns_data, processor, tmp_path / "run")
    items = np.arange(67)
    found = load_lengths(folder, turns_data, processor, tmp_path / "other run")
    assert np.array_equal(found.counts(items), local.counts(items))


def test_stream_of_the_store_is_that_of_the_folder(
    address: str,
    shard_folder: Path,
    turns_data: DataSection,
    small_packs: BatchSection,
    processor: Any,
    tmp_path: Path,
) -> None:
    """So a position saved with local shards goes on from a store."""
    options = {
        "batch": small_packs,
        "processor": processor,
        "cache_dir": tmp_path / "run",
        "rank": 0,
        "world_size": 1,
    }
    from_disk = turns_data.model_copy(
        update={"train": DataSection(train=str(shard_folder), text="turns").train}
    )
    stored = {
        "train": DataSection(train=address, text="turns").train,
        "cache": str(tmp_path / "cache"),
    }
    from_store = turns_data.model_copy(update=stored)
    local = PackLoader(from_disk, seed=5, **options)
    steps = [
        [batch.sample_ids for batch in step]
        for step in islice(local.steps(), local.steps_per_epoch(0) + 3)
    ]
    remote = PackLoader(from_store, seed=5, **options, workers=2)
    next(beginning := remote.steps())
    state = remote.state_dict()
    beginning.close()
    local.load_state_dict(state)
    remote.load_state_dict(local.state_dict())
    assert [
        [batch.sample_ids for batch in step] for step in islice(remote.steps(), len(steps) - 1)
    ] == steps[1:]
    validation = validation_batches(address, from_store, packs=2, **options)
    expected = validation_batches(shard_folder, from_disk, packs=2, **options)
    assert [batch.sample_ids for batch in validation] == [batch.sample_ids for batch in expected]
