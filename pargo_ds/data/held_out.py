"""Packs of held-out samples: the same ones at every evaluation of every run."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pargo_ds.batch import Batch
from pargo_ds.config import BatchSection, DataSection, StreamSection
from pargo_ds.data.loader import Encoder
from pargo_ds.data.mixture import open_mixture
from pargo_ds.data.one_shard import rows_at
from pargo_ds.data.plan import Position, make_plan

log = logging.getLogger("pargo_ds")


def held_out_batches(
    path: str | Path,
    data: DataSection,
    batch: BatchSection,
    processor: Any,
    *,
    packs: int,
    rank: int,
    world_size: int,
    cache_dir: str | Path,
    run_name: str = "",
    padded_rows: bool = False,
) -> list[Batch]:
    """This rank's share of at most `packs` packs of a held-out folder, in stored order; the same samples in every run.

    Every rank gets the same number of batches, empty ones where they do not divide: the model runs
    collectively. What is left out as too long is logged. Raises as PackLoader does.
    """
    alone = data.model_copy(update={"train": [StreamSection(path=str(path))], "canonical_nodes": 1})
    one_by_one = batch.model_copy(update={"packs_per_step": 1})
    mixture = open_mixture(
        alone, one_by_one, processor, seed=0, cache_dir=cache_dir, run_name=run_name, padded_rows=padded_rows
    )
    (stream,) = mixture.streams
    if stream.skipped:
        log.info("%s: left out %d conversations that do not fit into a pack", path, stream.skipped)
    stored_order = [np.arange(len(stream.lengths), dtype=np.uint32)]
    plan = make_plan(stored_order, mixture.counts, mixture.budget, seed=0, epoch=0)
    chosen = [step.packs_of(0, 1)[0] for step, _ in islice(plan.steps(Position()), packs)]
    chosen += [stored_order[0][:0]] * (-len(chosen) % world_size)
    mine = chosen[rank::world_size]
    positions = stream.lengths.conversations(np.concatenate(mine))[0].tolist() if mine else []
    rows, encoder = iter(rows_at(stream.folder, positions)), Encoder(mixture, processor)
    return [encoder.pack(list(islice(rows, len(items))), items) for items in mine]
