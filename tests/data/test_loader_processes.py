"""Promises of the loader that only real processes can break: ranks of a gloo group, started as
launchers do.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loading import global_steps, named, reading
from tiny import ROOT

from pargo_ds.data.loader import PackLoader

pytestmark = pytest.mark.timeout(120)
RANK_SCRIPT = """
import itertools, json, sys
import torch.distributed as dist
from pargo_ds import distributed
from pargo_ds.data_sections import BatchSection, DataSection, StreamSection
from pargo_ds.data.loader import PackLoader
from pargo_ds.model.processing_pargo import ParGoProcessor

folder, processor, cache = sys.argv[1:]
dist.init_process_group("gloo")
loader = PackLoader(
    DataSection(train=folder, text="turns", workers=1),
    BatchSection(tokens_per_pack=300, images_per_pack=6, packs_per_step=4),
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
    """Run RANK_SCRIPT with the environment that the deepspeed launcher gives (LOCAL_SIZE, no
    LOCAL_WORLD_SIZE).
    """
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_SCRIPT, *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                **shared,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
            },
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
    reference = PackLoader(**options)
    expected = named(global_steps([reference]), reference.steps_per_epoch(0))
    options["processor"].save_pretrained(tmp_path / "processor")
    ranks = start_ranks(
        2, free_port(), str(shard_folder), str(tmp_path / "processor"), str(tmp_path / "cache2")
    )
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
    first, second = (json.loads(rank.stdout.splitlines()[-1]) for rank in ranks)
    together = [
        [tuple(pack) for micro_step in zip(*step, strict=True) for pack in micro_step]
        for step in zip(first, second, strict=True)
    ]
    assert together == expected


@pytest.mark.slow
def test_bad_shard_ends_all_processes_of_a_machine(
    shard_folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """Only one process meets the fault; the others must not wait for that shard for ever."""
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    options["data"] = reading(options["data"], folder)
    PackLoader(**options)
    options["processor"].save_pretrained(tmp_path / "processor")
    bad = sorted(folder.glob("*.mds"))[2]
    bad.write_bytes(bad.read_bytes()[:-1] + b"?")
    ranks = start_ranks(
        2, free_port(), str(folder), str(tmp_path / "processor"), str(options["cache_dir"])
    )
    for rank in ranks:
        assert rank.returncode == 1
        assert bad.name in rank.stderr, rank.stderr
    assert any(f"{bad.name} is damaged" in rank.stderr for rank in ranks)
