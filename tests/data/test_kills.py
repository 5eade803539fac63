"""Ranks and workers killed with SIGKILL at any moment, resumed in another shape: the stream is the
uninterrupted one.

The ranks are real processes of a gloo group with DataLoader workers. Each notes the samples and a
hash of every pack's tensors for each step; rank 0 saves the loader's state after every third step,
as a run saves checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import defaultdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from pargo_ds.batch import Batch
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.loader import PackLoader
from pargo_ds.data.shards.mds import read_samples, write_shards

pytestmark = pytest.mark.timeout(600)
SHAPES = [(1, 0, 1), (2, 2, 1), (4, 1, 2), (1, 3, 1), (2, 1, 2)]
"""(ranks, workers, nodes)"""
SAVE_EVERY = 3
Pack = tuple[tuple[str, ...], str]
"""Sample ids and a hash of the tensors."""


def hashed(batch: Batch) -> Pack:
    body = hashlib.sha256()
    for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "pixel_values"):
        body.update(getattr(batch, name).numpy().tobytes())
    return tuple(batch.sample_ids), body.hexdigest()[:16]


def run_rank(
    options: dict[str, Any], folder: Path, rank: int, shape: tuple[int, int, int], port: int
) -> None:
    """One rank of a training that only reads: from the saved state on, until it is killed."""
    import torch.distributed as dist

    ranks, workers, nodes = shape
    os.setsid()  # its workers belong to its group, and are killed with it
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    loader = PackLoader(**options, rank=rank, world_size=ranks, nodes=nodes, workers=workers)
    first, state_file = 0, folder / "state.json"
    if state_file.is_file():
        saved = json.loads(state_file.read_text())
        first = saved["steps"]
        loader.load_state_dict(saved["loader"])
    with open(folder / f"log-{os.getpid()}", "a") as log:
        for step, batches in zip(count(first), loader.steps()):
            log.write(json.dumps([step, [hashed(batch) for batch in batches]]) + "\n")
            log.flush()
            dist.barrier()  # a real step ends on all ranks before it is saved
            if rank == 0 and (step + 1) % SAVE_EVERY == 0:
                aside = folder / "state.aside"
                aside.write_text(json.dumps({"steps": step + 1, "loader": loader.state_dict()}))
                aside.replace(state_file)
            time.sleep(0.01)


def train_and_kill(
    options: dict[str, Any], folder: Path, shape: tuple[int, int, int], until: int
) -> int:
    """Start all ranks, kill them at once when a step from `until` on is in a log; returns the steps
    saved then.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run_rank, args=(options, folder, rank, shape, port))
        for rank in range(shape[0])
    ]
    for process in ranks:
        process.start()
    try:
        give_up_at = time.monotonic() + 120
        while max(logged(folder), default=-1) < until:
            assert all(process.is_alive() for process in ranks), "a rank ended by itself"
            assert time.monotonic() < give_up_at, f"step {until} did not come"
            time.sleep(0.005)
    finally:
        for process in ranks:
            os.killpg(process.pid, signal.SIGKILL)
        for process in ranks:
            process.join()
    return (
        json.loads((folder / "state.json").read_text())["steps"]
        if (folder / "state.json").is_file()
        else 0
    )


def logged(folder: Path) -> dict[int, list[list[Pack]]]:
    """Step -> what each process that came to it has read; torn last lines are none."""
    found: dict[int, list[list[Pack]]] = defaultdict(list)
    for path in folder.glob("log-*"):
        for line in path.read_text().split("\n")[:-1]:
            step, packs = json.loads(line)
            found[step].append([(tuple(names), body) for names, body in packs])
    return found


def check(folder: Path, expected: list[list[Pack]], ranks: int) -> None:
    """All packs that were read since the start are those of the uninterrupted stream, and none was
    read twice.
    """
    for step, parts in logged(folder).items():
        packs = sorted(pack for part in parts for pack in part)
        if len(parts) == ranks:
            assert packs == sorted(expected[step]), f"step {step}"
        else:  # killed while some ranks had read it
            rest = sorted(expected[step])
            for pack in packs:
                rest.remove(pack)


@pytest.fixture
def options(shard_folder: Path, processor: Any, tmp_path: Path) -> dict[str, Any]:
    """A mixture over two canonical nodes, packed in many small windows."""
    some = [sample for sample in read_samples(shard_folder) if sample.images][:20]
    write_shards(some, tmp_path / "others", shard_bytes=1 << 12)
    streams = [{"path": str(shard_folder)}, {"path": str(tmp_path / "others"), "repeat": 1.5}]
    return {
        "data": DataSection(train=streams, text="turns", canonical_nodes=2),
        "batch": BatchSection(tokens_per_pack=150, images_per_pack=4, packs_per_step=4),
        "processor": processor,
        "seed": 5,
        "cache_dir": tmp_path / "cache",
    }


def kills(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, seed: int
) -> None:
    monkeypatch.setattr("pargo_ds.data.packing.plan.WINDOW_PACKS", 4)
    monkeypatch.setattr("pargo_ds.data.packing.plan.WINDOW_STEPS", 2)
    monkeypatch.setattr("pargo_ds.data.loader.FIRST_CHUNK", 4)
    print(f"random seed {seed}")
    rng = random.Random(seed)
    alone = PackLoader(**options, rank=0, world_size=1, workers=0)
    assert alone.plan(0).num_windows > 2
    expected = [[hashed(batch) for batch in step] for step in islice(alone.steps(), 20 * times)]
    saved, shape = 0, rng.choice(SHAPES)
    for kill in range(times):
        folder = tmp_path / f"kill{kill}"
        folder.mkdir()
        if saved:
            (folder / "state.json").write_bytes(
                (tmp_path / f"kill{kill - 1}" / "state.json").read_bytes()
            )
        first, saved = (
            saved,
            train_and_kill(options, folder, shape, until=saved + rng.randrange(4, 14)),
        )
        assert min(logged(folder)) == first
        check(folder, expected, shape[0])
        shape = rng.choice([other for other in SHAPES if other != shape])
    assert saved > alone.steps_per_epoch(0)


def test_two_kills_and_the_stream_goes_on(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills(options, tmp_path, monkeypatch, times=2, seed=1)


@pytest.mark.slow
def test_ten_random_kills_and_the_stream_goes_on(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills(options, tmp_path, monkeypatch, times=10, seed=random.randrange(2**32))
