"""A whole run from a real S3 server that goes down: every rank says which shard, and the run
continues exactly.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from object_store import ObjectStore
from tiny import ON_CPU, ROOT, merged, metrics, tiny_samples, warm_python

from pargo_ds.data.shards.folder import upload_folder
from pargo_ds.data.shards.mds import write_shards

STEPS = 24


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    pytest.importorskip("moto")
    store = ObjectStore()
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    store.start()
    store.new_bucket("training")
    yield store
    store.kill()


def start_ranks(count: int, run: dict, folder: Path) -> list[subprocess.Popen]:
    """Each rank by itself: a launcher would end the others before they can say anything."""
    run_file = folder / f"{run['name']}.yaml"
    run_file.write_text(yaml.safe_dump(run))
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(ObjectStore().port)}
    return [
        subprocess.Popen(
            [str(warm_python().path), "-m", "pargo_ds.train", str(run_file)],
            cwd=ROOT,
            env={**os.environ, **ON_CPU, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=open(folder / f"{run['name']}-{rank}.err", "w"),
        )
        for rank in range(count)
    ]


def ended(ranks: list[subprocess.Popen], run: dict, folder: Path) -> list[tuple[int, str]]:
    codes = [rank.wait(timeout=300) for rank in ranks]
    return [
        (code, (folder / f"{run['name']}-{rank}.err").read_text())
        for rank, code in enumerate(codes)
    ]


def losses(run_dir: Path) -> list[float]:
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, STEPS + 1))
    return [line["loss"] for line in metrics(run_dir)]


@pytest.mark.slow
def test_run_survives_the_death_of_its_store(
    tiny_run: dict, store: ObjectStore, tmp_path: Path
) -> None:
    """Small packs and a cache of few shards, so that the store is needed at every step."""
    write_shards(tiny_samples(600), tmp_path / "shards", shard_bytes=1 << 12)
    assert len(list((tmp_path / "shards").glob("*.mds"))) > 24
    address = store.address("demo/train")
    upload_folder(tmp_path / "shards", address)
    upload_folder(Path(tiny_run["data"]["validation"]), store.address("demo/validation"))
    data = {"train": address, "validation": store.address("demo/validation"), "workers": 1}
    changes = {
        "output": str(tmp_path),
        "train": {"steps": STEPS},
        "checkpoint": {"every": 3, "keep": 2},
        "data": {**data, "cache": str(tmp_path / "cache"), "cache_limit": "32kb"},
    }

    local = merged(
        tiny_run,
        {**changes, "name": "whole", "data": {"train": str(tmp_path / "shards"), "workers": 1}},
    )
    assert [code for code, _ in ended(start_ranks(2, local, tmp_path), local, tmp_path)] == [0, 0]

    run = merged(tiny_run, {**changes, "name": "cut"})
    ranks = start_ranks(2, run, tmp_path)
    wait_for_step(7, tmp_path / "cut", ranks)
    store.kill()
    started = time.monotonic()
    for rank, (code, stderr) in enumerate(ended(ranks, run, tmp_path)):
        assert code not in (0, None)
        # A rank whose own pack was at hand when another could not read says so in its log.
        said = stderr + (tmp_path / "cut" / "logs" / f"rank_{rank:05d}.log").read_text()
        assert f"{address}/shard.000" in said
    print(f"the ranks ended {time.monotonic() - started:.0f} s after the store")
    assert not (tmp_path / "cut" / "DONE").exists()
    # A start during the outage is no fault of the user either.
    during = ended(start_ranks(2, run, tmp_path), run, tmp_path)
    assert [code for code, _ in during] == [1, 1], during[0][1][-3000:]
    assert f"reading {address}/index.json failed" in during[0][1] + during[1][1]
    state = json.loads((tmp_path / "cut/state.json").read_text())
    assert (state["state"], state["restart"]) == ("failed", True)

    store.start()
    store.new_bucket("training")
    upload_folder(tmp_path / "shards", address)
    upload_folder(Path(tiny_run["data"]["validation"]), store.address("demo/validation"))
    again = ended(start_ranks(2, run, tmp_path), run, tmp_path)
    assert [code for code, _ in again] == [0, 0], again[0][1][-3000:]
    assert "continuing after step" in again[0][1]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def wait_for_step(step: int, run_dir: Path, ranks: list[subprocess.Popen]) -> None:
    give_up_at = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").is_file() or len(metrics(run_dir)) < step:
        assert all(rank.poll() is None for rank in ranks), "a rank ended too early"
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
