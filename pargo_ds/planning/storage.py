"""Disk and network of the data, and checkpoints."""

from __future__ import annotations

from pathlib import Path

from pargo_ds.config import RunConfig
from pargo_ds.data.shards.folder import is_remote
from pargo_ds.data.shards.mds import read_index
from pargo_ds.planning.hardware import Network

IMAGE_BYTES = 45_000
"""Of a JPEG as web data has them, where the shards are not on this machine."""


def data_bytes(run: RunConfig) -> tuple[int, int]:
    """(bytes, samples) of the training shards that are on this machine."""
    total = samples = 0
    for stream in run.data.train:
        if not is_remote(stream.path) and Path(stream.path).is_dir():
            samples += sum(shard["samples"] for shard in read_index(stream.path).shards)
            for file in Path(stream.path).iterdir():
                if file.is_file():
                    total += file.stat().st_size
    return total, samples


def checkpoint_bytes(trained: int) -> int:
    """Of one checkpoint: weights that train and Adam's two moments, in float32."""
    return 12 * trained


def save_s(nbytes: float, nodes: int, disk_gbs: float, network: Network) -> float:
    """Seconds until a checkpoint is written, each node its part."""
    return nbytes / nodes / (min(disk_gbs, network.gbs) * 1e9)
