"""Promises of the loader: each item once an epoch, one stream for all ranks and workers, exact
resume, loud ends.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import global_steps, ids, named, reading, two_epochs

from pargo_ds.batch import IGNORE_INDEX, Batch, pack
from pargo_ds.data.conversation import encode
from pargo_ds.data.loader import PackLoader, whole_steps
from pargo_ds.data.packing.plan import Position
from pargo_ds.data.shards.mds import read_samples, write_shards
from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.validation import validation_batches
from pargo_ds.data_sections import DataSection, StreamSection
from pargo_ds.errors import SampleError, ShardError

pytestmark = pytest.mark.timeout(120)


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.sample_ids == other.sample_ids
    assert one.max_seqlen == other.max_seqlen
    for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "pixel_values"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("ranks, workers", [(1, 0), (2, 2), (4, 1), (1, 3)])
def test_each_item_once_an_epoch_and_one_stream_for_all_shapes(
    options: dict[str, Any], ranks: int, workers: int
) -> None:
    reference = PackLoader(**options)
    steps = two_epochs(reference)
    expected = named(global_steps([reference]), steps)
    shape = {**options, "world_size": ranks, "workers": workers}
    loaders = [PackLoader(**{**shape, "rank": rank}) for rank in range(ranks)]
    found = named(global_steps(loaders), steps)
    assert found == expected
    first = reference.steps_per_epoch(0)
    assert ids(found[:first]) == ids(found[first:]) == {f"{number:05}": 1 for number in range(67)}
    assert found[:first] != found[first:]


@pytest.mark.parametrize("ranks, workers", [(1, 0), (2, 0), (1, 2)])
def test_a_peek_shows_the_coming_images_and_moves_nothing(
    options: dict[str, Any], ranks: int, workers: int
) -> None:
    expected = list(itertools.islice(global_steps([PackLoader(**options)]), 6))
    shape = {**options, "world_size": ranks, "workers": workers}
    loaders = [PackLoader(**{**shape, "rank": rank}) for rank in range(ranks)]
    for first in (0, 2):
        for loader in loaders:
            stream = loader.steps()
            list(itertools.islice(stream, first))
            stream.close()
        peeked = [batch for loader in loaders for batch in loader.peek(20)]
        steps, images = 0, 0
        while images < 20:
            images += sum(batch.num_images for batch in expected[first + steps])
            steps += 1
        assert sum(batch.num_images for batch in peeked) == images
        assert sorted(name for batch in peeked for name in batch.sample_ids) == sorted(
            name
            for step in expected[first : first + steps]
            for batch in step
            for name in batch.sample_ids
        )
        assert loaders[0].state_dict()["position"]["step"] == first
    everything = sum(batch.num_images for loader in loaders for batch in loader.peek(10**6))
    assert images < everything < 10**6  # it ends with the epoch


@pytest.mark.parametrize(
    "canonical_nodes, ranks, workers, nodes", [(2, 2, 2, 2), (4, 4, 1, 2), (4, 4, 0, 4)]
)
def test_nodes_divide_the_same_steps(
    options: dict[str, Any], canonical_nodes: int, ranks: int, workers: int, nodes: int
) -> None:
    """The packs of each step are the same; which node reads them is not."""
    options["data"] = options["data"].model_copy(update={"canonical_nodes": canonical_nodes})
    reference = PackLoader(**options)
    steps = two_epochs(reference)
    expected = named(global_steps([reference]), steps)
    shape = {**options, "world_size": ranks, "workers": workers, "nodes": nodes}
    found = named(
        global_steps([PackLoader(**{**shape, "rank": rank}) for rank in range(ranks)]), steps
    )
    assert [sorted(step) for step in found] == [sorted(step) for step in expected]
    assert ids(found) == {f"{number:05}": 2 for number in range(67)}


def test_both_captions_are_two_items(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    with_images = (sample for sample in read_samples(shard_folder) if sample.images)
    count = write_shards(with_images, tmp_path / "captioned", shard_bytes=1 << 12)
    data = DataSection(
        train=str(tmp_path / "captioned"), text="captions", caption="both", workers=0
    )
    loader = PackLoader(**{**options, "data": data})
    steps = named(global_steps([loader]), loader.steps_per_epoch(0))
    seen = ids(steps)
    assert len(seen) == count
    assert set(seen.values()) == {2}


@pytest.mark.parametrize("stop_after", [1, 4, "end of epoch", "in second epoch"])
@pytest.mark.parametrize("ranks, workers", [(1, 0), (1, 2), (2, 0)])
def test_resume_is_identical_to_the_uninterrupted_stream(
    shard_folder: Path, options: dict[str, Any], stop_after: int | str, ranks: int, workers: int
) -> None:
    """Saved with workers that read ahead, continued on another number of ranks and workers."""
    reference = PackLoader(**options)
    epoch, steps = reference.steps_per_epoch(0), two_epochs(reference)
    expected = list(itertools.islice(global_steps([reference]), steps))
    stop = {"end of epoch": epoch, "in second epoch": epoch + 2}.get(stop_after, stop_after)

    first = PackLoader(**options, workers=2)
    stream = first.steps()
    for _ in range(stop):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    stream.close()

    shape = {**options, "world_size": ranks, "workers": workers}
    loaders = [PackLoader(**{**shape, "rank": rank}) for rank in range(ranks)]
    for loader in loaders:
        loader.load_state_dict(state)
    continued = itertools.islice(global_steps(loaders), steps - stop)
    for step, expected_step in zip(continued, expected[stop:], strict=True):
        for batch, expected_batch in zip(step, expected_step, strict=True):
            assert_equal(batch, expected_batch)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"seed": 6}, "seed was 5 when saved and is 6 now"),
        ({"batch.tokens_per_pack": 310}, "batch.tokens_per_pack was 300 when saved and is 310 now"),
        ({"data.too_long": "skip"}, "data.too_long was 'error'"),
        ({"data.canonical_nodes": 2}, "data.canonical_nodes was 1 when saved and is 2 now"),
        ({"repeat": 2}, "data.train[0].repeat was 1 when saved and is 2.0 now"),
        ({"shards": 9}, "data.train[0].shards was"),
        ({"visual_tokens": 6}, "processor was"),
    ],
)
def test_position_of_another_stream_is_refused_naming_the_part(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    state = PackLoader(**options).state_dict()
    ((what, value),) = change.items()
    section, _, name = what.partition(".")
    if name:
        options[section] = options[section].model_copy(update={name: value})
    elif what == "repeat":
        options["data"].train[0] = StreamSection(path=str(shard_folder), repeat=value)
    elif what == "shards":
        write_shards(itertools.islice(read_samples(shard_folder), value), tmp_path / "fewer")
        options["data"] = reading(options["data"], tmp_path / "fewer")
    elif what == "visual_tokens":
        options["processor"] = type(options["processor"])(
            options["processor"].tokenizer, image_size=8, visual_tokens=value
        )
    else:
        options[what] = value
    with pytest.raises(ValueError, match="belongs to another stream: ") as caught:
        PackLoader(**options).load_state_dict(state)
    assert part in str(caught.value)
    assert str(caught.value).count("when saved") == 1


def test_position_of_an_older_plan_is_refused_by_name(options: dict[str, Any]) -> None:
    state = PackLoader(**options).state_dict()
    state["fingerprint"]["plan"] = 2
    with pytest.raises(ValueError, match="another stream: plan was 2 when saved and is 3 now"):
        PackLoader(**options).load_state_dict(state)


def test_shards_may_move_and_workers_and_packs_per_forward_change(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    state = PackLoader(**options).state_dict()
    shutil.copytree(shard_folder, tmp_path / "moved")
    moved = reading(
        options["data"], tmp_path / "moved", cache=str(tmp_path / "elsewhere"), workers=3
    )
    batch = options["batch"].model_copy(update={"packs_per_forward": 3})
    PackLoader(**{**options, "data": moved, "batch": batch}).load_state_dict(state)


def test_random_state_of_the_training_is_left_alone(
    shard_folder: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    next(PackLoader(**options, workers=1).steps())
    assert torch.equal(torch.get_rng_state(), expected)


def test_batches_are_the_encoded_samples(
    shard_folder: Path, options: dict[str, Any], processor: Any
) -> None:
    """Text-only samples among them; no first token of a sample is a target."""
    samples = {sample.id: sample for sample in read_samples(shard_folder)}
    loader = PackLoader(**options)
    kinds = set()
    for step in itertools.islice(loader.steps(), loader.steps_per_epoch(0)):
        for batch in step:
            encoded = [
                encode(samples[name], samples[name].turns, processor) for name in batch.sample_ids
            ]
            assert (
                batch.input_ids[0].tolist() == [token for one in encoded for token in one.input_ids]
                or not encoded
            )
            assert torch.equal(
                batch.pixel_values,
                torch.cat([batch.pixel_values[:0], *(e.pixels for e in encoded)]),
            )
            assert (batch.labels[0, batch.cu_seqlens[:-1].long()] == IGNORE_INDEX).all()
            assert batch.num_tokens <= options["batch"].tokens_per_pack
            assert batch.num_images <= options["batch"].images_per_pack
            kinds |= {len(samples[name].images) for name in batch.sample_ids}
    assert kinds == {0, 1, 2}


def test_last_step_is_completed_with_empty_packs(
    shard_folder: Path, options: dict[str, Any]
) -> None:
    loader = PackLoader(
        **{**options, "batch": options["batch"].model_copy(update={"packs_per_step": 16})}
    )
    *_, last = itertools.islice(loader.steps(), loader.steps_per_epoch(0))
    assert len(last) == 16
    empty = [batch for batch in last if not batch.sample_ids]
    assert empty == last[-len(empty) :]
    assert 0 < len(empty) < 16
    assert empty[0].num_targets == 0
    assert empty[0].pixel_values.shape[0] == 0


def test_packs_per_step_must_divide_over_the_ranks(
    shard_folder: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="packs_per_step = 4 does not divide over 3 ranks"):
        PackLoader(**{**options, "world_size": 3})


def test_skipped_items_are_counted(shard_folder: Path, options: dict[str, Any]) -> None:
    skip = {
        "data": options["data"].model_copy(update={"too_long": "skip"}),
        "batch": options["batch"].model_copy(update={"tokens_per_pack": 90}),
    }
    loader = PackLoader(**{**options, **skip})
    steps = named(global_steps([loader]), loader.steps_per_epoch(0))
    seen = ids(steps)
    assert 0 < loader.skipped == 67 - len(seen)
    with pytest.raises(ValueError, match="do not fit into a pack of 90 tokens"):
        PackLoader(**{**options, "batch": skip["batch"]})


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_ends_the_run_with_the_samples_name(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    good = next(read_samples(shard_folder))
    bad = Sample(id="bad one", images=[good.images[0][:60]], turns=good.turns)
    write_shards([good, bad], tmp_path / "shards")
    options["data"] = reading(options["data"], tmp_path / "shards")
    loader = PackLoader(**options, workers=workers)
    with pytest.raises(SampleError, match="sample bad one in .*: image 0 cannot be decoded"):
        next(loader.steps())


@pytest.mark.parametrize("fault", ["damaged", "missing"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_bad_shard_raises_and_does_not_end_silently(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path, fault: str, workers: int
) -> None:
    """In streaming alone: the epoch ends early with exit status 0, or other workers hang."""
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    options["data"] = reading(options["data"], folder)
    PackLoader(**options)  # measures the lengths while all is well
    bad = sorted(folder.glob("*.mds"))[2]
    if fault == "missing":
        bad.unlink()
    else:
        content = bytearray(bad.read_bytes())
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    loader = PackLoader(**options, workers=workers)
    with pytest.raises(ShardError, match=bad.name):
        for _ in itertools.islice(loader.steps(), loader.steps_per_epoch(0)):
            pass


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "fault", ["none", "a pack is lost", "a worker ends early", "a worker ends without its mark"]
)
def test_a_stream_that_is_not_whole_is_an_error(workers: int, fault: str) -> None:
    """Packs 6 to 13 of an epoch, as a DataLoader takes them from its workers in turn."""
    count, position = 14, Position()
    parts = []
    for worker in range(workers):
        numbers = range(6 + worker, count, workers)
        parts.append(
            [*((number, position, pack([], 8)) for number in numbers), (count, None, None)]
        )
    if fault == "a pack is lost":
        del parts[-1][2]
    elif fault == "a worker ends early":
        del parts[-1][2:-1]
    elif fault == "a worker ends without its mark":
        parts[-1].pop()
    in_turn = [one for row in itertools.zip_longest(*parts) for one in row if one is not None]
    if fault == "none":
        steps = list(whole_steps(in_turn, 6, 2, workers))
        assert [(len(step), after) for step, after in steps] == [(2, position)] * 4
        return
    with pytest.raises(RuntimeError, match="the loader gave|came to the end of the epoch"):
        list(whole_steps(in_turn, 6, 2, workers))


def test_reading_here_and_then_in_forked_workers(
    shard_folder: Path, options: dict[str, Any]
) -> None:
    """Locks and threads of the parent process are of no use in its children."""
    loader = PackLoader(**options)
    expected = named(global_steps([loader]), 3)
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "position": Position()._asdict()})
    loader.workers = 2
    assert named(global_steps([loader]), 3) == expected


@pytest.mark.parametrize("packs", [3, 100])
def test_validation_batches_are_the_same_count_on_every_rank(
    shard_folder: Path, options: dict[str, Any], packs: int
) -> None:
    del options["seed"]
    (alone,) = [validation_batches(shard_folder, packs=packs, **options)]
    options["world_size"] = 4
    ranks = [
        validation_batches(shard_folder, packs=packs, **{**options, "rank": rank})
        for rank in range(4)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    together = [batch.sample_ids for row in zip(*ranks, strict=True) for batch in row]
    expected = [batch.sample_ids for batch in alone]
    assert together[: len(expected)] == expected
    assert not any(together[len(expected) :])
    assert len(expected) == 3 if packs == 3 else sum(map(len, expected)) == 67
