"""One chunk of inputs -> a folder with its shards and the account of every input, whole or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pargo_ds.data.build_plan import HELD_OUT, TRAIN, Plan, write_json
from pargo_ds.data.schema import Sample, id_digest, pack_images
from pargo_ds.data.shards import HASHES, finish_shards, shard_writer
from pargo_ds.data.sources import Outcome, outcomes
from pargo_ds.data.splits import in_share, picture_digests

DIGESTS = np.dtype([("id", "<u8"), ("content", "<u8"), ("unit", "<u8"), ("held_out", "?"), ("line", "<u4")])
"""One row a sample: 8-byte hashes of id, content and the unit of the split (its smallest picture's, else the id's); the
split it is stored in, which the merge may change; the line in inputs.jsonl."""


def chunk_name(number: int) -> str:
    return f"{number:08d}"


def build_chunk(plan: Plan, folder: Path, number: int, payload: Any) -> dict[str, Any]:
    """Build one chunk into `folder`/00000017; return its counts (inputs, samples, rejects and changes by kind, an
    example)."""
    target = folder / chunk_name(number)
    unfinished = folder / f".{chunk_name(number)}.{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        counts = _fill(plan, unfinished, outcomes(plan.source, payload, plan.finish))
        with _ignored(errno.ENOTEMPTY, errno.EEXIST):  # another process was first; its chunk is the same
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return counts


@contextlib.contextmanager
def _ignored(*numbers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _fill(plan: Plan, folder: Path, found: Iterator[Outcome]) -> dict[str, Any]:
    writers: dict[str, Any] = {}
    digests: list[tuple[int, int, int, bool, int]] = []
    links: list[tuple[int, int]] = []
    rejects: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    inputs, example = 0, ""
    with open(folder / "inputs.jsonl", "w", encoding="ascii") as lines:
        for line, outcome in enumerate(found):
            inputs += 1
            lines.write(json.dumps(_described(outcome)) + "\n")
            if outcome.sample is None:
                rejects[outcome.kind] += 1
                example = outcome.reason
                continue
            changed.update(outcome.sample.meta.get("changed", ()))
            digest, pictures = id_digest(outcome.id), sorted(picture_digests(outcome.sample))
            unit = pictures[0] if pictures else digest
            links += [(unit, other) for other in pictures[1:]]
            by_share = plan.held_out is not None and plan.held_out < 1
            held_out = by_share and bool(in_share(np.array([unit], np.uint64), plan.held_out)[0])
            split = HELD_OUT if held_out else TRAIN
            if split not in writers:
                writers[split] = shard_writer(folder / split, plan.compression, HASHES, plan.shard_bytes)
            writers[split].write(outcome.sample.to_mds())
            digests.append((digest, content_digest(outcome.sample), unit, held_out, line))
    for writer in writers.values():
        finish_shards(writer)
    np.save(folder / "digests.npy", np.array(digests, DIGESTS))
    np.save(folder / "links.npy", np.array(links, np.uint64).reshape(-1, 2))
    counts = {"inputs": inputs, "samples": len(digests), "rejects": dict(rejects), "changed": dict(changed)}
    write_json(folder / "chunk.json", counts)
    return {**counts, "example": example}


def _described(outcome: Outcome) -> dict[str, Any]:
    described = {**outcome.where, "id": outcome.id}
    return described if outcome.sample else {**described, "kind": outcome.kind, "reason": outcome.reason}


def content_digest(sample: Sample) -> int:
    """8 bytes of what a sample shows and says: its pictures' bytes, turns and captions."""
    digest = xxhash.xxh64(pack_images(sample.images))
    digest.update(json.dumps([sample.turns, sample.captions], sort_keys=True).encode())
    return digest.intdigest()
