"""PackLoader: shards + plan -> this rank's packed batches, resumable at any step on any number of ranks.

The state is an epoch, a position in its plan, and a fingerprint of everything that decides the stream. Ranks and
workers are not part of it: they only divide one and the same stream of steps. Order and windows are cut before the
workers start; each worker packs the windows itself, when it comes to them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pargo_ds import distributed
from pargo_ds.batch import Batch, Encoded, pack
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import encode, views
from pargo_ds.data.mixture import Mixture, open_mixture
from pargo_ds.data.plan import Items, Plan, Position, count_steps
from pargo_ds.data.reader import SampleReader
from pargo_ds.data.schema import Sample

WORKER_GRACE_S = 20
"""How long a worker outlives a SIGTERM that was meant for its rank."""
STALL_TIMEOUT_S = 600
"""A worker that gives no batch for so long is taken for dead (a killed process cannot say so itself)."""
FIRST_CHUNK, CHUNK_SAMPLES = 64, 2048
"""Samples that the reader of a worker is given at a time: few at first, so that the first batch comes soon."""
T = TypeVar("T")


class Share(NamedTuple):
    """Which part of the stream a rank reads."""

    rank: int
    world_size: int
    nodes: int


class PackLoader:
    """Endless optimizer steps of one rank, packed from the streams of data.train.

    All ranks construct it together, with the same arguments but `rank`. `nodes` are machines with as many ranks each,
    in the order of ranks; each reads the parts of its canonical nodes. `workers` (default: data.workers) are processes
    per rank; 0 reads in this process. The stream of steps is the same for any number of ranks, nodes and workers.
    `padded_rows`: the LLM pads the samples of a pack to rows of equal length, and packs are planned for it.

    Raises:
        ValueError: no shard folder, a malformed sample (its id and the reason), packs_per_step not divisible
            by the ranks, ranks not divisible by the nodes, or, with too_long: error, a conversation longer than the
            budget.
        ShardError: a shard does not match its hash.
    """

    def __init__(
        self,
        data: DataSection,
        batch: BatchSection,
        processor: Any,
        *,
        seed: int,
        rank: int,
        world_size: int,
        nodes: int = 1,
        cache_dir: str | Path,
        run_name: str = "",
        workers: int | None = None,
        padded_rows: bool = False,
    ) -> None:
        if batch.packs_per_step % world_size:
            raise ValueError(
                f"batch.packs_per_step = {batch.packs_per_step} does not divide over {world_size} ranks; use a multiple"
            )
        if world_size % nodes:
            raise ValueError(f"{world_size} ranks do not divide over {nodes} nodes; start as many on each")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked workers do not go together
        self._share = Share(rank, world_size, nodes)
        self._micro_batches = batch.packs_per_step // world_size
        self._workers = data.workers if workers is None else workers
        self._cache_dir = Path(cache_dir)
        self._mixture = open_mixture(
            data, batch, processor, seed=seed, cache_dir=cache_dir, run_name=run_name, padded_rows=padded_rows
        )
        self.skipped, self.refused = self._mixture.skipped, self._mixture.refused
        self._fingerprint = self._mixture.fingerprint(processor)
        self._reader = SampleReader(self._mixture.folders, data.cache_limit)
        self._encoder = Encoder(self._mixture, processor)
        self._plans: dict[int, Plan] = {}
        self._epoch, self._position = 0, Position()

    skipped: int
    """Conversations left out because they do not fit into a pack (data.too_long: skip)."""
    refused: int
    """Samples left out because no conversation can be made of them (data.refused: skip)."""

    def plan(self, epoch: int) -> Plan:
        """The plan of one epoch, the same on every rank."""
        if epoch not in self._plans:
            self._plans.clear()  # only the newest is kept: the order of ten million items takes 40 MB
            self._plans[epoch] = self._mixture.plan(epoch)
        return self._plans[epoch]

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Optimizer steps in an epoch (epochs may differ by a step: each is packed in its own order).

        All ranks call it together. Rank 0 packs the whole epoch for it once, and notes the number in the run's cache.
        """
        body = json.dumps([self._fingerprint, epoch], sort_keys=True)
        path = self._cache_dir / f"steps-{hashlib.sha256(body.encode()).hexdigest()[:24]}.json"

        def read_or_count() -> int:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = path.with_suffix(f".{os.getpid()}")
                aside.write_text(json.dumps({"epoch": epoch, "steps": count_steps(self.plan(epoch))}) + "\n")
                aside.replace(path)
            return json.loads(path.read_text())["steps"]

        return distributed.main_then_others(read_or_count)

    def steps(self) -> Generator[list[Batch], None, None]:
        """This rank's micro-batches of each optimizer step, from the present position on, without end.

        Raises ShardError when a shard cannot be read, SampleError for a malformed sample, RuntimeError when a
        worker dies or stalls; it never ends early.
        """
        while True:
            epoch, plan = self._epoch, self.plan(self._epoch)
            for batches, position in self._read(plan, self._position):
                ended = position.window == plan.num_windows
                self._epoch, self._position = (epoch + 1, Position()) if ended else (epoch, position)
                yield batches
            if self._epoch == epoch:
                raise RuntimeError(f"the loader ended at step {self._position.step} of epoch {epoch}, not at its end")

    def peek(self, images: int) -> list[Batch]:
        """This rank's batches of the coming steps that hold `images` images over all ranks, or all of the epoch's.

        The position stays where it is. The same images for any number of ranks. Raises as `steps` does.
        """
        place, seen, needed = (self._epoch, self._position), 0, 0
        for step, _ in self.plan(self._epoch).steps(self._position):
            if seen >= images:
                break
            seen += sum(sum(row.pictures) for row in step.rows)
            needed += 1
        steps = self.steps()
        batches = [batch for step in islice(steps, needed) for batch in step]
        steps.close()
        self._epoch, self._position = place
        return batches

    def _read(self, plan: Plan, position: Position) -> Iterator[tuple[list[Batch], Position]]:
        """This rank's steps from `position` to the end of the epoch, checked to be all packs of the plan in order."""
        loader = DataLoader(
            _Packs(self._reader, self._encoder, plan, self._share, position),
            batch_size=None,
            num_workers=self._workers,
            timeout=STALL_TIMEOUT_S if self._workers else 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else each epoch would draw from the global random state of the training
        )
        due, ends, step = position.step * self._micro_batches, 0, []
        for number, after, batch in loader:
            if number != due or (ends and batch is not None):
                what = "its end" if batch is None else "a pack"
                raise RuntimeError(f"the loader gave {what} at number {number} of the epoch where pack {due} was due")
            if batch is None:
                ends += 1
                continue
            step.append(batch)
            due += 1
            if len(step) == self._micro_batches:
                yield step, after
                step = []
        if ends != max(1, self._workers):
            raise RuntimeError(f"{ends} of {self._workers} loader processes came to the end of the epoch")

    def state_dict(self) -> dict[str, Any]:
        """The position after the last step that `steps` yielded; plain JSON values, the same on every rank.

        Batches that workers have prefetched do not count.
        """
        return {"epoch": self._epoch, "position": self._position._asdict(), "fingerprint": dict(self._fingerprint)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position, whatever the number of ranks then or now; call it before `steps`.

        Raises ValueError when the state belongs to another stream, naming each part that differs.
        """
        if "position" not in state:
            raise ValueError(
                f"the saved data position ({', '.join(sorted(state))}) was written by an earlier version, which packed "
                "another stream; start a new run (start_from takes over its weights)"
            )
        saved = state["fingerprint"]
        differing = [
            f"{part} was {saved.get(part)!r} when saved and is {self._fingerprint.get(part)!r} now"
            for part in sorted({*saved, *self._fingerprint})
            if saved.get(part) != self._fingerprint.get(part)
        ]
        if differing:
            raise ValueError(
                f"the saved data position belongs to another stream: {'; '.join(differing)}. "
                "Restore these settings, or start a new run"
            )
        self._epoch, self._position = int(state["epoch"]), Position(**state["position"])


class Encoder:
    """Turns samples into packs: which conversation of a sample an item is, and how it is encoded."""

    def __init__(self, mixture: Mixture, processor: Any) -> None:
        self.mixture, self.processor = mixture, processor

    def pack(self, rows: list[dict[str, Any]], items: Items) -> Batch:
        """The pack of these items, whose samples are `rows` as stored."""
        encoded = [self._encode(row, item) for row, item in zip(rows, items.tolist(), strict=True)]
        return pack(encoded, self.processor.image_size)

    def _encode(self, row: dict[str, Any], item: int) -> Encoded:
        stream, view, tokens = self.mixture.conversation(item)
        where = stream.folder.path
        sample = Sample.from_mds(row, where)
        encoded = encode(sample, views(sample, stream.data, where)[view], self.processor, where)
        if len(encoded.input_ids) != tokens:
            raise RuntimeError(
                f"sample {sample.id} in {where} has {len(encoded.input_ids)} tokens but was planned with "
                f"{tokens}; the shards changed during the run, or the measured lengths are not theirs"
            )
        return encoded


class _Planned(NamedTuple):
    """One pack of a rank, before it is read."""

    number: int
    """Packs of this rank in the epoch before it."""
    after: Position | None
    """The position after its step; None marks the end of the epoch, and `number` is then the count of packs."""
    items: Items


class _Packs(IterableDataset):
    """(pack number, position after its step, Batch) of one rank; worker w of W yields its packs w, w + W, ...

    With batch_size=None a DataLoader takes from its workers in turn, so the packs come in order. Each worker ends with
    (count of packs, None, None).
    """

    def __init__(self, reader: SampleReader, encoder: Encoder, plan: Plan, share: Share, position: Position) -> None:
        self.reader, self.encoder, self.plan, self.share, self.position = reader, encoder, plan, share, position

    def __iter__(self) -> Iterator[tuple[int, Position | None, Batch | None]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for chunk in _one_ahead(_chunks(self._planned(worker, workers))):
            with closing(self._rows(np.concatenate([planned.items for planned in chunk]))) as rows:
                for number, after, items in chunk:
                    read = list(islice(rows, len(items)))
                    yield number, after, None if after is None else self.encoder.pack(read, items)

    def _planned(self, worker: int, workers: int) -> Iterator[_Planned]:
        """This worker's packs, packed window by window, and the end mark."""
        per_step = self.plan.budget.packs_per_step // self.share.world_size
        first = number = self.position.step * per_step
        for step, after in self.plan.steps(self.position):
            for items in step.packs_of(*self.share):
                if (number - first) % workers == worker:
                    yield _Planned(number, after, items)
                number += 1
        yield _Planned(number, None, self.plan.orders[0][:0])

    def _rows(self, items: Items) -> Iterator[dict[str, Any]]:
        if len(items):
            self.reader.assign(self.encoder.mixture.positions(items, self.reader.sample_offset_per_folder))
            yield from self.reader


def _chunks(planned: Iterator[_Planned]) -> Iterator[list[_Planned]]:
    """Runs of packs with about CHUNK_SAMPLES samples, less at first."""
    limit, chunk, samples = FIRST_CHUNK, [], 0
    for one in planned:
        chunk.append(one)
        samples += len(one.items)
        if samples >= limit:
            yield chunk
            limit, chunk, samples = min(2 * limit, CHUNK_SAMPLES), [], 0
    if chunk:
        yield chunk


def _one_ahead(chunks: Iterator[T]) -> Iterator[T]:
    """The same, with the next one made by a thread meanwhile: packing a window must not hold up the reading."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, chunks, None)
        while (chunk := upcoming.result()) is not None:
            upcoming = thread.submit(next, chunks, None)
            yield chunk


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
    # Slurm signals every process of a step: a worker that ended at once would take its rank with it before the save.
    # Ignoring the signal for good would leave a failed rank waiting for its workers.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))
