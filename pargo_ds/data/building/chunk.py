"""Build one chunk of inputs: a folder, whole or absent, with shards and a record of each input."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pargo_ds.data.building.plan import Plan, write_json
from pargo_ds.data.building.splits import image_digests, in_share
from pargo_ds.data.shards.mds import HASHES, finish_shards, shard_writer
from pargo_ds.data.shards.schema import Sample, id_digest, pack_images
from pargo_ds.data.shards.splits import TRAIN, VALIDATION
from pargo_ds.data.sources import Outcome, outcomes
from pargo_ds.files.whole_folder import folder_aside

DIGESTS = np.dtype(
    [("id", "<u8"), ("content", "<u8"), ("unit", "<u8"), ("validation", "?"), ("line", "<u4")]
)
"""Columns of the table of samples. `id`, `content`: 8-byte hashes of the id and of the contents.
`unit`: the hash by which the sample is assigned to a split, the smallest hash of its images or else
the hash of its id. `validation`: the split in which the sample is stored; the merge may change it.
`line`: its line in inputs.jsonl.
"""


def chunk_name(number: int) -> str:
    """Return the name of a chunk's folder, such as 00000017."""
    return f"{number:08d}"


def build_chunk(plan: Plan, folder: Path, number: int, payload: Any) -> dict[str, Any]:
    """Build one chunk into `folder`/00000017. Return its counts: inputs, samples, rejects by kind,
    changed samples by kind; and the reason of one reject as an example.
    """
    writer = f"{socket.gethostname()}-{os.getpid()}"
    with folder_aside(folder / chunk_name(number), writer, first_wins=True) as unfinished:
        # If another process builds the same chunk, it writes the same bytes.
        return _fill(plan, unfinished, outcomes(plan.source, payload, plan.transform))


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
            digest, images = id_digest(outcome.id), sorted(image_digests(outcome.sample))
            unit = images[0] if images else digest
            links += [(unit, other) for other in images[1:]]
            validation = _is_held_out(unit, plan.validation)
            split = VALIDATION if validation else TRAIN
            if split not in writers:
                writers[split] = shard_writer(
                    folder / split, plan.compression, HASHES, plan.shard_bytes
                )
            writers[split].write(outcome.sample.to_mds())
            digests.append((digest, content_digest(outcome.sample), unit, validation, line))
    for writer in writers.values():
        finish_shards(writer)
    np.save(folder / "digests.npy", np.array(digests, DIGESTS))
    np.save(folder / "links.npy", np.array(links, np.uint64).reshape(-1, 2))
    counts = {
        "inputs": inputs,
        "samples": len(digests),
        "rejects": dict(rejects),
        "changed": dict(changed),
    }
    write_json(folder / "chunk.json", counts)
    return {**counts, "example": example}


def _is_held_out(unit: int, wanted: float | int | None) -> bool:
    """Whether a sample is stored in the validation split at once. This is possible only if a share
    is wanted; which samples make up a number is known at the merge.
    """
    if wanted is None or wanted >= 1:
        return False
    return bool(in_share(np.array([unit], np.uint64), wanted)[0])


def _described(outcome: Outcome) -> dict[str, Any]:
    described = {**outcome.where, "id": outcome.id}
    if outcome.sample is None:
        described |= {"kind": outcome.kind, "reason": outcome.reason}
    return described


def content_digest(sample: Sample) -> int:
    """Return an 8-byte hash of the contents of a sample: the bytes of its images, turns and
    captions.
    """
    digest = xxhash.xxh64(pack_images(sample.images))
    digest.update(json.dumps([sample.turns, sample.captions], sort_keys=True).encode())
    return digest.intdigest()
