"""Promises of the loader: each item once an epoch, one stream for all ranks and workers, exact resume, loud ends."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pargo_ds.batch import IGNORE_INDEX, Batch
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import encode
from pargo_ds.data.loader import PackLoader, held_out_batches
from pargo_ds.data.reader import OWNER, SampleReader, ShardError, remove_stale_shared_memory
from pargo_ds.data.schema import Sample, SampleError
from pargo_ds.data.shards import read_samples, write_shards

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def options(turns_data: DataSection, small_packs: BatchSection, processor: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": turns_data,
        "batch": small_packs,
        "processor": processor,
        "seed": 5,
        "cache_dir": tmp_path / "cache",
        "rank": 0,
        "world_size": 1,
    }


def global_steps(loaders: list[PackLoader]) -> Iterator[list[Batch]]:
    """The packs of each step over all ranks, in the plan's order: rank r holds packs r, r + ranks, ..."""
    for ranks in zip(*(loader.steps() for loader in loaders), strict=True):
        yield [batch for micro_step in zip(*ranks, strict=True) for batch in micro_step]


def named(steps: Iterator[list[Batch]], count: int) -> list[list[tuple[str, ...]]]:
    return [[batch.sample_ids for batch in step] for step in itertools.islice(steps, count)]


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.sample_ids == other.sample_ids
    assert one.max_seqlen == other.max_seqlen
    for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "pixel_values"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def two_epochs(loader: PackLoader) -> int:
    return loader.steps_per_epoch(0) + loader.steps_per_epoch(1)


@pytest.mark.parametrize("ranks, workers", [(1, 0), (2, 0), (1, 2), (4, 0), (2, 2)])
def test_each_item_once_an_epoch_and_one_stream_for_all_shapes(
    shard_folder: Path, options: dict[str, Any], ranks: int, workers: int
) -> None:
    reference = PackLoader(shard_folder, **options)
    steps = two_epochs(reference)
    expected = named(global_steps([reference]), steps)
    shape = {**options, "world_size": ranks, "workers": workers}
    loaders = [PackLoader(shard_folder, **{**shape, "rank": rank}) for rank in range(ranks)]
    found = named(global_steps(loaders), steps)
    assert found == expected
    seen = Counter(itertools.chain.from_iterable(itertools.chain.from_iterable(found)))
    assert seen == {f"{number:05}": 2 for number in range(67)}
    assert found[: steps // 2] != found[steps // 2 :]


def test_both_captions_are_two_items(shard_folder: Path, options: dict[str, Any], tmp_path: Path) -> None:
    with_pictures = (sample for sample in read_samples(shard_folder) if sample.images)
    count = write_shards(with_pictures, tmp_path / "captioned", shard_bytes=1 << 12)
    data = DataSection(train="unused", text="captions", caption="both", workers=0)
    loader = PackLoader(tmp_path / "captioned", **{**options, "data": data})
    steps = named(global_steps([loader]), loader.steps_per_epoch(0))
    seen = Counter(itertools.chain.from_iterable(itertools.chain.from_iterable(steps)))
    assert len(seen) == count
    assert set(seen.values()) == {2}


@pytest.mark.parametrize("stop_after", [1, 4, "end of epoch", "in second epoch"])
@pytest.mark.parametrize("ranks, workers", [(1, 0), (1, 2), (2, 0)])
def test_resume_is_identical_to_the_uninterrupted_stream(
    shard_folder: Path, options: dict[str, Any], stop_after: int | str, ranks: int, workers: int
) -> None:
    """Saved with workers that read ahead, continued on another number of ranks and workers."""
    reference = PackLoader(shard_folder, **options)
    epoch, steps = reference.steps_per_epoch(0), two_epochs(reference)
    expected = list(itertools.islice(global_steps([reference]), steps))
    stop = {"end of epoch": epoch, "in second epoch": epoch + 2}.get(stop_after, stop_after)

    first = PackLoader(shard_folder, **options, workers=2)
    stream = first.steps()
    for _ in range(stop):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    stream.close()

    shape = {**options, "world_size": ranks, "workers": workers}
    loaders = [PackLoader(shard_folder, **{**shape, "rank": rank}) for rank in range(ranks)]
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
        (
            {"batch": BatchSection(tokens_per_pack=310, pictures_per_pack=6, packs_per_step=4)},
            "batch.tokens_per_pack was 300 when saved and is 310 now",
        ),
        ({"data": DataSection(train="x", text="turns", too_long="skip")}, "data.too_long was 'error'"),
        ({}, "shards was"),
        ({}, "processor was"),
    ],
)
def test_position_of_another_stream_is_refused_naming_the_part(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    state = PackLoader(shard_folder, **options).state_dict()
    if part == "shards was":
        few = list(itertools.islice(read_samples(shard_folder), 9))
        shard_folder = tmp_path / "fewer"
        write_shards(few, shard_folder)
    if part == "processor was":
        processor = options["processor"]
        change = {"processor": type(processor)(processor.tokenizer, image_size=8, visual_tokens=6)}
    other = PackLoader(shard_folder, **{**options, **change})
    with pytest.raises(ValueError, match="belongs to another stream: ") as caught:
        other.load_state_dict(state)
    assert part in str(caught.value)
    assert str(caught.value).count("when saved") == 1


def test_random_state_of_the_training_is_left_alone(shard_folder: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    next(PackLoader(shard_folder, **options, workers=1).steps())
    assert torch.equal(torch.get_rng_state(), expected)


def test_batches_are_the_encoded_samples(shard_folder: Path, options: dict[str, Any], processor: Any) -> None:
    """Text-only samples among them; no first token of a sample is a target."""
    samples = {sample.id: sample for sample in read_samples(shard_folder)}
    loader = PackLoader(shard_folder, **options)
    kinds = set()
    for step in itertools.islice(loader.steps(), loader.steps_per_epoch(0)):
        for batch in step:
            encoded = [encode(samples[name], samples[name].turns, processor) for name in batch.sample_ids]
            assert batch.input_ids[0].tolist() == [token for one in encoded for token in one.input_ids] or not encoded
            assert torch.equal(batch.pixel_values, torch.cat([batch.pixel_values[:0], *(e.pixels for e in encoded)]))
            assert (batch.labels[0, batch.cu_seqlens[:-1].long()] == IGNORE_INDEX).all()
            assert batch.num_tokens <= options["batch"].tokens_per_pack
            assert batch.num_images <= options["batch"].pictures_per_pack
            kinds |= {len(samples[name].images) for name in batch.sample_ids}
    assert kinds == {0, 1, 2}


def test_last_step_is_completed_with_empty_packs(shard_folder: Path, options: dict[str, Any]) -> None:
    loader = PackLoader(
        shard_folder, **{**options, "batch": options["batch"].model_copy(update={"packs_per_step": 16})}
    )
    *_, last = itertools.islice(loader.steps(), loader.steps_per_epoch(0))
    assert len(last) == 16
    empty = [batch for batch in last if not batch.sample_ids]
    assert empty == last[-len(empty) :]
    assert 0 < len(empty) < 16
    assert empty[0].num_targets == 0
    assert empty[0].pixel_values.shape[0] == 0


def test_packs_per_step_must_divide_over_the_ranks(shard_folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="packs_per_step = 4 does not divide over 3 ranks"):
        PackLoader(shard_folder, **{**options, "world_size": 3})


def test_skipped_items_are_counted(shard_folder: Path, options: dict[str, Any]) -> None:
    skip = {
        "data": options["data"].model_copy(update={"too_long": "skip"}),
        "batch": options["batch"].model_copy(update={"tokens_per_pack": 90}),
    }
    loader = PackLoader(shard_folder, **{**options, **skip})
    steps = named(global_steps([loader]), loader.steps_per_epoch(0))
    seen = set(itertools.chain.from_iterable(itertools.chain.from_iterable(steps)))
    assert 0 < loader.skipped == 67 - len(seen)
    with pytest.raises(ValueError, match="do not fit into a pack of 90 tokens"):
        PackLoader(shard_folder, **{**options, "batch": skip["batch"]})


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_picture_ends_the_run_with_the_samples_name(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    good = next(read_samples(shard_folder))
    bad = Sample(id="bad one", images=[good.images[0][:60]], turns=good.turns)
    write_shards([good, bad], tmp_path / "shards")
    loader = PackLoader(tmp_path / "shards", **options, workers=workers)
    with pytest.raises(SampleError, match="sample bad one in .*: picture 0 cannot be decoded"):
        next(loader.steps())


@pytest.mark.parametrize("fault", ["damaged", "missing"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_bad_shard_raises_and_does_not_end_silently(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path, fault: str, workers: int
) -> None:
    """In streaming alone: the epoch ends early with exit status 0, or other workers hang."""
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    PackLoader(folder, **options)  # measures the lengths while all is well
    bad = sorted(folder.glob("*.mds"))[2]
    if fault == "missing":
        bad.unlink()
    else:
        content = bytearray(bad.read_bytes())
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    loader = PackLoader(folder, **options, workers=workers)
    with pytest.raises(ShardError, match=bad.name):
        for _ in itertools.islice(loader.steps(), loader.steps_per_epoch(0)):
            pass


def test_reading_here_and_then_in_forked_workers(shard_folder: Path, options: dict[str, Any]) -> None:
    """Locks and threads of the parent process are of no use in its children (filelock: "inherited across fork")."""
    loader = PackLoader(shard_folder, **options)
    expected = named(global_steps([loader]), 3)
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "packs": 0})
    loader._workers = 2
    assert named(global_steps([loader]), 3) == expected


@pytest.mark.parametrize("packs", [3, 100])
def test_held_out_batches_are_the_same_count_on_every_rank(
    shard_folder: Path, options: dict[str, Any], packs: int
) -> None:
    del options["seed"]
    (alone,) = [held_out_batches(shard_folder, packs=packs, **options)]
    options["world_size"] = 4
    ranks = [held_out_batches(shard_folder, packs=packs, **{**options, "rank": rank}) for rank in range(4)]
    assert len({len(batches) for batches in ranks}) == 1
    together = [batch.sample_ids for row in zip(*ranks, strict=True) for batch in row]
    expected = [batch.sample_ids for batch in alone]
    assert together[: len(expected)] == expected
    assert not any(together[len(expected) :])
    assert len(expected) == 3 if packs == 3 else sum(map(len, expected)) == 67


RANK_SCRIPT = """
import itertools, json, sys
import torch.distributed as dist
from pargo_ds import distributed
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.loader import PackLoader
from pargo_ds.model.processing_pargo import ParGoProcessor

folder, processor, cache = sys.argv[1:]
dist.init_process_group("gloo")
loader = PackLoader(
    folder,
    DataSection(train="unused", text="turns", workers=1),
    BatchSection(tokens_per_pack=300, pictures_per_pack=6, packs_per_step=4),
    ParGoProcessor.from_pretrained(processor),
    seed=5,
    rank=distributed.rank(),
    world_size=distributed.world_size(),
    cache_dir=cache,
)
steps = itertools.islice(loader.steps(), loader.steps_per_epoch(0))
print(json.dumps([[batch.sample_ids for batch in step] for step in steps]), flush=True)
"""


def start_ranks(count: int, port: int, *arguments: str) -> list[subprocess.CompletedProcess]:
    """Run RANK_SCRIPT with the environment that the deepspeed launcher gives (LOCAL_SIZE, no LOCAL_WORLD_SIZE)."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_SCRIPT, *arguments],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=100) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_real_processes_divide_the_stream_of_one(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    reference = PackLoader(shard_folder, **options)
    expected = named(global_steps([reference]), reference.steps_per_epoch(0))
    options["processor"].save_pretrained(tmp_path / "processor")
    ranks = start_ranks(2, free_port(), str(shard_folder), str(tmp_path / "processor"), str(tmp_path / "cache2"))
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
    first, second = (json.loads(rank.stdout.splitlines()[-1]) for rank in ranks)
    together = [
        [tuple(pack) for micro_step in zip(*step, strict=True) for pack in micro_step]
        for step in zip(first, second, strict=True)
    ]
    assert together == expected


@pytest.mark.slow
def test_bad_shard_ends_all_processes_of_a_machine(shard_folder: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """Only one process meets the fault; the others must not wait for that shard for ever."""
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    PackLoader(folder, **options)
    options["processor"].save_pretrained(tmp_path / "processor")
    bad = sorted(folder.glob("*.mds"))[2]
    bad.write_bytes(bad.read_bytes()[:-1] + b"?")
    ranks = start_ranks(2, free_port(), str(folder), str(tmp_path / "processor"), str(options["cache_dir"]))
    for rank in ranks:
        assert rank.returncode == 1
        assert "ShardError" in rank.stderr
    assert any(f"{bad.name} is damaged" in rank.stderr for rank in ranks)


def test_stale_shared_memory_is_removed_and_that_of_living_readers_stays(shard_folder: Path) -> None:
    alive = SampleReader(shard_folder)
    script = f"""
import os, signal
from pargo_ds.data.reader import SampleReader
reader = SampleReader({str(shard_folder)!r})
reader.assign(__import__("numpy").arange(3))
next(iter(reader))
print(reader._shm_prefix_int, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = f"{int(killed.stdout):06}_*"
    tmp = Path(os.environ.get("TMPDIR", "/tmp"))
    assert list(tmp.glob(f"{left}{OWNER}"))
    remove_stale_shared_memory()
    assert not list(Path("/dev/shm").glob(left))
    assert not list(tmp.glob(left))
    assert list(tmp.glob(f"{alive._shm_prefix_int:06}_{OWNER}"))
    alive.assign(torch.arange(2).numpy())
    assert len(list(alive)) == 2
