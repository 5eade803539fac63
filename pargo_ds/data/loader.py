"""PackLoader: shards + plan -> this rank's packed batches, resumable at any step on any number of ranks.

The state is an epoch, a count of packs, and a fingerprint of everything that decides the stream. Ranks and
workers are not part of it: they only divide one and the same stream of steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pargo_ds.batch import Batch, Encoded, pack
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import encode, text_settings, views
from pargo_ds.data.lengths import Lengths, index_hash, load_lengths, within_budget
from pargo_ds.data.plan import PLAN_VERSION, Budget, Plan, make_plan
from pargo_ds.data.reader import SampleReader, epoch_order
from pargo_ds.data.schema import Sample
from pargo_ds.data.shards import open_shards, read_sample

STALL_TIMEOUT_S = 600
"""A worker that gives no batch for so long is taken for dead (a killed process cannot say so itself)."""


class PackLoader:
    """Endless optimizer steps of one rank, packed from a shard folder.

    All ranks construct it together, with the same arguments but `rank`. `workers` (default: data.workers) are
    processes per rank; 0 reads in this process. The stream is the same for any number of ranks and workers.

    Raises:
        ValueError: no shard folder, a malformed sample (its id and the reason), packs_per_step not divisible
            by the ranks, or, with too_long: error, a conversation longer than the budget.
        ShardError: a shard does not match its hash.
    """

    def __init__(
        self,
        folder: str | Path,
        data: DataSection,
        batch: BatchSection,
        processor: Any,
        *,
        seed: int,
        rank: int,
        world_size: int,
        cache_dir: str | Path,
        workers: int | None = None,
    ) -> None:
        if batch.packs_per_step % world_size:
            raise ValueError(
                f"batch.packs_per_step = {batch.packs_per_step} does not divide over {world_size} ranks; use a multiple"
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked workers do not go together
        self._rank, self._world_size = rank, world_size
        self._workers = data.workers if workers is None else workers
        self._seed = seed
        self._budget = Budget(**batch.model_dump())
        measured = load_lengths(folder, data, processor, cache_dir)
        self.lengths, self.skipped = within_budget(measured, batch, data, folder)
        self._reader = SampleReader(folder)
        self._items = _Items(folder, data, processor, self.lengths)
        self._fingerprint = _fingerprint(folder, data, batch, processor, seed)
        self._plans: dict[int, Plan] = {}
        self._epoch, self._packs = 0, 0

    skipped: int
    """Conversations left out because they do not fit into a pack (data.too_long: skip)."""

    def plan(self, epoch: int) -> Plan:
        """The plan of one epoch, the same on every rank."""
        if epoch not in self._plans:
            shard = np.searchsorted(self._reader.sample_offset_per_shard, self.lengths.samples, side="right") - 1
            items_per_shard = np.bincount(shard, minlength=self._reader.num_shards)
            order = epoch_order(items_per_shard, self._seed, epoch)
            # Only the newest is kept: an epoch of ten million items takes 160 MB.
            self._plans = {epoch: self._make_plan(order, epoch)}
        return self._plans[epoch]

    def _make_plan(self, order: NDArray[np.int64], epoch: int) -> Plan:
        tokens, pictures = self.lengths.tokens, self.lengths.pictures
        return make_plan(order, tokens, pictures, self._budget, seed=self._seed, epoch=epoch)

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Optimizer steps in an epoch (epochs may differ by a step: each is packed in its own order)."""
        return self.plan(epoch).num_steps

    def steps(self) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimizer step, from the present position on, without end.

        Raises ShardError when a shard cannot be read, SampleError for a malformed sample, RuntimeError when a
        worker dies or stalls; it never ends early.
        """
        packs_per_step, micro_batches = self._budget.packs_per_step, self._budget.packs_per_step // self._world_size
        while True:
            plan = self.plan(self._epoch)
            first_step = self._packs // packs_per_step
            batches = self._read(plan, first_step)
            for step in range(first_step, plan.num_steps):
                step_batches = list(islice(batches, micro_batches))
                if len(step_batches) < micro_batches:
                    raise RuntimeError(f"the loader ended at step {step} of {plan.num_steps} of epoch {self._epoch}")
                self._packs += packs_per_step
                yield step_batches
            for _ in batches:  # lets the workers end by themselves; more than planned must not come
                raise RuntimeError(f"the loader gave more than the {plan.num_steps} planned steps of an epoch")
            self._epoch, self._packs = self._epoch + 1, 0

    def _read(self, plan: Plan, first_step: int) -> Iterator[Batch]:
        """This rank's batches from `first_step` to the end of the epoch, checked to be the planned packs in order."""
        packs = plan.rank_packs(self._rank, self._world_size, first_step)
        loader = DataLoader(
            _Packs(self._reader, self._items, plan, packs),
            batch_size=None,
            num_workers=self._workers,
            timeout=STALL_TIMEOUT_S if self._workers else 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else each epoch would draw from the global random state of the training
        )
        for expected, (number, batch) in zip(packs.tolist(), loader, strict=False):
            if number != expected:
                raise RuntimeError(f"the loader gave pack {number} of the epoch where pack {expected} was due")
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last step that `steps` yielded; plain JSON values.

        Batches that workers have prefetched do not count.
        """
        return {"epoch": self._epoch, "packs": self._packs, "fingerprint": dict(self._fingerprint)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position, whatever the number of ranks then or now; call it before `steps`.

        Raises ValueError when the state belongs to another stream, naming each part that differs.
        """
        saved = state["fingerprint"]
        parts = sorted({*saved, *self._fingerprint})
        differing = [
            f"{part} was {saved.get(part)!r} when saved and is {self._fingerprint.get(part)!r} now"
            for part in parts
            if saved.get(part) != self._fingerprint.get(part)
        ]
        if differing:
            raise ValueError(
                f"the saved data position belongs to another stream: {'; '.join(differing)}. "
                "Restore these settings, or start a new run"
            )
        self._epoch, self._packs = int(state["epoch"]), int(state["packs"])


def held_out_batches(
    folder: str | Path,
    data: DataSection,
    batch: BatchSection,
    processor: Any,
    *,
    packs: int,
    rank: int,
    world_size: int,
    cache_dir: str | Path,
) -> list[Batch]:
    """This rank's share of at most `packs` packs of held-out samples; the same samples in every run.

    Every rank gets the same number of batches, empty ones where they do not divide: the model runs
    collectively. Raises as PackLoader does.
    """
    measured = load_lengths(folder, data, processor, cache_dir)
    lengths, _ = within_budget(measured, batch, data, folder)
    budget = Budget(**{**batch.model_dump(), "packs_per_step": 1})
    plan = make_plan(np.arange(len(lengths)), lengths.tokens, lengths.pictures, budget, seed=0, epoch=0)
    items, dataset = _Items(folder, data, processor, lengths), open_shards(folder)
    used = min(packs, plan.num_packs)
    mine = range(rank, -(-used // world_size) * world_size, world_size)
    return [
        items.pack([read_sample(dataset, int(lengths.samples[item])) for item in chosen], chosen)
        for chosen in (plan.pack(index if index < used else plan.num_packs) for index in mine)
    ]


class _Items:
    """Turns samples into packs: which conversation of a sample an item is, and how it is encoded."""

    def __init__(self, folder: str | Path, data: DataSection, processor: Any, lengths: Lengths) -> None:
        self.folder, self.data, self.processor, self.lengths = str(folder), data, processor, lengths

    def pack(self, samples: list[Sample], items: NDArray[np.int64]) -> Batch:
        encoded = [self._encode(sample, item) for sample, item in zip(samples, items.tolist(), strict=True)]
        return pack(encoded, self.processor.image_size)

    def _encode(self, sample: Sample, item: int) -> Encoded:
        turns = views(sample, self.data, self.folder)[self.lengths.views[item]]
        encoded = encode(sample, turns, self.processor, self.folder)
        if len(encoded.input_ids) != self.lengths.tokens[item]:
            raise RuntimeError(
                f"sample {sample.id} in {self.folder} has {len(encoded.input_ids)} tokens but was planned with "
                f"{self.lengths.tokens[item]}; the shards changed during the run, or the cached lengths are not theirs"
            )
        return encoded


class _Packs(IterableDataset):
    """(pack number, Batch) of one rank; worker w of W yields its packs w, w + W, ...

    With batch_size=None a DataLoader takes from its workers in turn, so the order is that of `packs`.
    """

    def __init__(self, reader: SampleReader, items: _Items, plan: Plan, packs: NDArray[np.int64]) -> None:
        self.reader, self.items, self.plan, self.packs = reader, items, plan, packs

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        info = get_worker_info()
        mine = self.packs if info is None else self.packs[info.id :: info.num_workers]
        chosen = [self.plan.pack(index) for index in mine.tolist()]
        self.reader.assign(self.items.lengths.samples[np.concatenate([np.zeros(0, np.int64), *chosen])])
        rows = iter(self.reader)
        for index, items in zip(mine.tolist(), chosen, strict=True):
            samples = [Sample.from_mds(row, self.items.folder) for row in islice(rows, len(items))]
            yield index, self.items.pack(samples, items)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism


def _fingerprint(
    folder: str | Path, data: DataSection, batch: BatchSection, processor: Any, seed: int
) -> dict[str, Any]:
    """Everything that decides the stream, by the names that stand in the run file where there is one."""
    return {
        "plan": PLAN_VERSION,
        "seed": seed,
        "shards": index_hash(folder),
        "processor": processor.fingerprint(),
        "data.too_long": data.too_long,
        **{f"data.{name}": value for name, value in text_settings(data).items()},
        **{f"batch.{name}": value for name, value in batch.model_dump().items()},
    }
