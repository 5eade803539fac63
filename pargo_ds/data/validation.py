"""Packs of held-out samples, which are the same at every validation of every run."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import numpy as np

from pargo_ds.batch import Batch, ConversationEncoder
from pargo_ds.data.loader import Encoder
from pargo_ds.data.packing.mixture import open_mixture
from pargo_ds.data.packing.plan import Position, make_plan
from pargo_ds.data.shards.shard_files import rows_at
from pargo_ds.data_sections import BatchSection, DataSection, StreamSection

log = logging.getLogger("pargo_ds")


def validation_batches(
    path: str | Path,
    data: DataSection,
    batch: BatchSection,
    processor: ConversationEncoder,
    *,
    packs: int,
    rank: int,
    world_size: int,
    cache_dir: str | Path,
    run_name: str = "",
    padded_rows: bool = False,
) -> list[Batch]:
    """Return this rank's share of at most `packs` packs of a folder of held-out samples. The
    samples are taken in stored order, so they are the same in every run.

    Every rank gets the same number of batches, because the model runs collectively; some batches
    are empty if the packs do not divide over the ranks. Conversations that are too long are left
    out and counted in the log. Raises as PackLoader does.
    """
    alone = data.model_copy(update={"train": [StreamSection(path=str(path))], "canonical_nodes": 1})
    one_by_one = batch.model_copy(update={"packs_per_step": 1})
    mixture = open_mixture(
        alone,
        one_by_one,
        processor,
        seed=0,
        cache_dir=cache_dir,
        run_name=run_name,
        padded_rows=padded_rows,
    )
    (stream,) = mixture.streams
    if stream.skipped:
        log.info("%s: left out %d conversations that do not fit into a pack", path, stream.skipped)
    stored_order = [np.arange(len(stream.lengths), dtype=np.uint32)]
    plan = make_plan(stored_order, mixture.counts, mixture.budget, seed=0, epoch=0)
    chosen = []
    for step, _ in islice(plan.steps(Position()), packs):
        chosen.append(step.packs_of(0, 1)[0])
    chosen += [stored_order[0][:0]] * (-len(chosen) % world_size)
    mine = chosen[rank::world_size]
    if not mine:
        return []
    positions = stream.lengths.conversations(np.concatenate(mine))[0].tolist()
    rows, encoder = iter(rows_at(stream.folder, positions)), Encoder(mixture, processor)
    return [encoder.pack(list(islice(rows, len(items))), items) for items in mine]
