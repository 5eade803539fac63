"""Build the loaders of training data and of held-out packs for a run file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pargo_ds import distributed
from pargo_ds.batch import Batch
from pargo_ds.config import RunConfig
from pargo_ds.data_sections import BatchSection, DataSection
from pargo_ds.model import ParGoProcessor
from pargo_ds.model.packing import Packing

if TYPE_CHECKING:
    from pargo_ds.data.loader import PackLoader


class _Options(TypedDict):
    """The arguments that both loaders get."""

    data: DataSection
    batch: BatchSection
    processor: ParGoProcessor
    rank: int
    world_size: int
    cache_dir: Path
    run_name: str
    padded_rows: bool


def build_loaders(
    run: RunConfig, processor: ParGoProcessor, packing: Packing
) -> tuple[PackLoader, list[Batch]]:
    """Return the training loader and this rank's held-out packs. `packing` says how the LLM keeps
    packed samples apart; the packs are planned for that.
    """
    from pargo_ds.data.loader import PackLoader
    from pargo_ds.data.validation import validation_batches

    options: _Options = {
        "data": run.data,
        "batch": run.batch,
        "processor": processor,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "cache_dir": run.run_dir / "cache",
        "run_name": run.name,
        "padded_rows": packing.road == "rows",
    }
    loader = PackLoader(seed=run.seed, nodes=num_nodes(), workers=run.data.workers, **options)
    if run.data.validation is None:
        return loader, []
    packs = run.validation.packs
    return loader, validation_batches(run.data.validation, packs=packs, **options)


def num_nodes() -> int:
    """Return the number of machines of this run, computed from the launcher's numbers of ranks; 1
    if the machines have different numbers of ranks.

    Rank 0 decides for all, because ranks that divide the stream differently would lose and repeat
    data.
    """
    ranks = distributed.world_size()
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ranks)
    nodes = 1
    if ranks % on_this_node == 0:
        nodes = ranks // on_this_node
    return distributed.broadcast_object(nodes)
