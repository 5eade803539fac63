"""PackLoader reads shards in the order of a plan and yields the packed batches of one rank. It can
resume at any step, on any number of ranks.

Its state is an epoch, a position in the plan of that epoch, and a fingerprint of everything on
which the stream of steps depends. The numbers of ranks and workers are not part of the state,
because they only divide the same stream. The order of samples and its windows are computed before
the workers start; each worker packs a window when it needs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pargo_ds import distributed
from pargo_ds.batch import Batch, ConversationEncoder, Encoded, pack
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import conversations_of, encode
from pargo_ds.data.packing.mixture import Mixture, Stream, open_mixture
from pargo_ds.data.packing.plan import Items, Plan, Position, count_steps
from pargo_ds.data.shards.reader import SampleReader
from pargo_ds.data.shards.schema import Sample
from pargo_ds.files.whole_file import write_whole

WORKER_GRACE_S = 20
"""Seconds for which a worker continues after a SIGTERM that was meant for its rank."""
STALL_TIMEOUT_S = 600
"""A worker that yields no batch for this number of seconds is assumed to be dead, because a killed
process cannot report its death.
"""
FIRST_CHUNK, CHUNK_SAMPLES = 64, 2048
"""Number of samples that a worker passes to its reader at a time; the first chunk is small, so that
the first batch is ready soon.
"""
T = TypeVar("T")


class Share(NamedTuple):
    """Decides which part of the stream a rank reads."""

    rank: int
    world_size: int
    nodes: int


class PackLoader:
    """Endless optimizer steps of one rank, packed from the streams of data.train.

    All ranks construct their loaders together, with equal arguments except for `rank`. The stream
    of steps is the same for any number of ranks, nodes and workers.

    Args:
        nodes: number of machines, each with the same number of consecutive ranks; a machine reads
            only its parts of the data (data.canonical_nodes).
        workers: number of worker processes of this rank (default: data.workers); 0: this process
            reads.
        padded_rows: whether the LLM pads the samples of a pack to rows of equal length; packs are
            then planned for the padded size.

    Raises:
        ValueError: a path is no shard folder, a sample is malformed, packs_per_step is no multiple
            of the ranks, the ranks are no multiple of the nodes, or a conversation is longer than a
            pack (with too_long: error).
        ShardError: a shard does not match its hash.
    """

    def __init__(
        self,
        data: DataSection,
        batch: BatchSection,
        processor: ConversationEncoder,
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
            raise ValueError(
                f"{world_size} ranks do not divide over {nodes} nodes; start as many on each"
            )
        # Threads of the tokenizers library can block the workers that are forked from this process.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._share = Share(rank, world_size, nodes)
        self._micro_batches = batch.packs_per_step // world_size
        if workers is None:
            workers = data.workers
        self.workers = workers
        """Number of worker processes from the next epoch on."""
        self._cache_dir = Path(cache_dir)
        self._mixture = open_mixture(
            data,
            batch,
            processor,
            seed=seed,
            cache_dir=cache_dir,
            run_name=run_name,
            padded_rows=padded_rows,
        )
        self.skipped, self.refused = self._mixture.skipped, self._mixture.refused
        self._fingerprint = self._mixture.fingerprint(processor)
        self._reader = SampleReader(self._mixture.folders, data.cache_limit)
        self._encoder = Encoder(self._mixture, processor)
        self._plans: dict[int, Plan] = {}
        self._epoch, self._position = 0, Position()

    skipped: int
    """Number of conversations left out because they do not fit into a pack (data.too_long:
    skip).
    """
    refused: int
    """Number of samples left out because they make no conversation (data.refused: skip)."""

    def plan(self, epoch: int) -> Plan:
        """Return the plan of one epoch, the same on every rank."""
        if epoch not in self._plans:
            self._plans.clear()  # one plan is enough: the order of ten million items takes 40 MB
            self._plans[epoch] = self._mixture.plan(epoch)
        return self._plans[epoch]

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Return the number of optimizer steps in an epoch. Epochs may differ by a step, because
        each is packed in another order.

        Collective. Rank 0 packs the whole epoch once to count its steps, and writes the number into
        the run's cache.
        """
        body = json.dumps([self._fingerprint, epoch], sort_keys=True)
        path = self._cache_dir / f"steps-{hashlib.sha256(body.encode()).hexdigest()[:24]}.json"

        def read_or_count() -> int:
            if not path.is_file():
                counted = {"epoch": epoch, "steps": count_steps(self.plan(epoch))}
                write_whole(path, json.dumps(counted) + "\n", writer=str(os.getpid()))
            return json.loads(path.read_text())["steps"]

        return distributed.rank0_first(read_or_count)

    def steps(self) -> Generator[list[Batch], None, None]:
        """Yield this rank's micro-batches of each optimizer step, from the current position on. The
        iterator never ends: after an epoch it continues with the next one.

        Raises ShardError when a shard cannot be read, SampleError for a malformed sample, and
        RuntimeError when a worker dies or stalls.
        """
        while True:
            epoch, plan = self._epoch, self.plan(self._epoch)
            for batches, position in self._read(plan, self._position):
                self._position = position
                if position.window == plan.num_windows:
                    self._epoch, self._position = epoch + 1, Position()
                yield batches
            if self._epoch == epoch:
                raise RuntimeError(
                    f"the loader ended at step {self._position.step} of epoch {epoch}, not at its end"
                )

    def peek(self, images: int) -> list[Batch]:
        """Return this rank's batches of the next steps, as many steps as hold `images` images over
        all ranks, or fewer if the epoch ends before.

        The position does not change. The images of all ranks together are the same for any number
        of ranks. Raises as `steps` does.
        """
        place, seen, needed = (self._epoch, self._position), 0, 0
        for step, _ in self.plan(self._epoch).steps(self._position):
            if seen >= images:
                break
            seen += sum(sum(row.images) for row in step.rows)
            needed += 1
        steps = self.steps()
        batches = list(chain.from_iterable(islice(steps, needed)))
        steps.close()
        self._epoch, self._position = place
        return batches

    def _read(self, plan: Plan, position: Position) -> Iterator[tuple[list[Batch], Position]]:
        """Yield this rank's steps from `position` to the end of the epoch, and check that no pack
        of the plan is missing.
        """
        loader = DataLoader(
            _Packs(self._reader, self._encoder, plan, self._share, position),
            batch_size=None,
            num_workers=self.workers,
            timeout=STALL_TIMEOUT_S if self.workers else 0,
            worker_init_fn=_start_worker,
            # Without a generator each epoch would draw from the global random state of training.
            generator=torch.Generator(),
        )
        first = position.step * self._micro_batches
        return whole_steps(loader, first, self._micro_batches, max(1, self.workers))

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last step that `steps` yielded, as JSON values that are the
        same on every rank.

        Batches that workers have read ahead do not count.
        """
        return {
            "epoch": self._epoch,
            "position": self._position._asdict(),
            "fingerprint": dict(self._fingerprint),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position; call it before `steps`. The number of ranks may differ from
        that at the save.

        Raises ValueError when the state belongs to another stream, naming each part that differs.
        """
        saved, now = state["fingerprint"], self._fingerprint
        differing = []
        for part in sorted({*saved, *now}):
            before, after = saved.get(part), now.get(part)
            if before != after:
                differing.append(f"{part} was {before!r} when saved and is {after!r} now")
        if differing:
            raise ValueError(
                f"the saved data position belongs to another stream: {'; '.join(differing)}. "
                "Restore these settings, or start a new run"
            )
        self._epoch, self._position = int(state["epoch"]), Position(**state["position"])


class Encoder:
    """Turns samples into packs: it finds the conversation of a sample that an item stands for, and
    encodes it.
    """

    def __init__(self, mixture: Mixture, processor: ConversationEncoder) -> None:
        self.mixture, self.processor = mixture, processor

    def pack(self, rows: list[dict[str, Any]], items: Items) -> Batch:
        """Return the pack of these items; `rows` are their samples as they are stored."""
        conversations = self.mixture.conversations(items)
        pairs = zip(rows, conversations, strict=True)
        return pack([self._encode(row, *which) for row, which in pairs], self.processor.image_size)

    def _encode(self, row: dict[str, Any], stream: Stream, view: int, tokens: int) -> Encoded:
        where = stream.folder.path
        sample = Sample.from_mds(row, where)
        encoded = encode(
            sample, conversations_of(sample, stream.data, where)[view], self.processor, where
        )
        if len(encoded.input_ids) != tokens:
            raise RuntimeError(
                f"sample {sample.id} in {where} has {len(encoded.input_ids)} tokens but was planned with "
                f"{tokens}; the shards changed during the run, or the measured lengths are not theirs"
            )
        return encoded


class _Planned(NamedTuple):
    """One pack of a rank, before its samples are read."""

    number: int
    """Number of packs of this rank in the epoch that come before this one."""
    after: Position | None
    """The position after the step of this pack. None marks the end of the epoch; `number` is then
    the number of all packs.
    """
    items: Items


Numbered: TypeAlias = "tuple[int, Position | None, Batch | None]"
"""(number of packs of this rank that come before, position after the step, pack); at the end of the
epoch (number of packs, None, None).
"""


class _Packs(IterableDataset):
    """The numbered packs of one rank; worker w of W yields the packs w, w + W, ...

    With batch_size=None a DataLoader takes from its workers in turn, so the packs arrive in order.
    """

    def __init__(
        self, reader: SampleReader, encoder: Encoder, plan: Plan, share: Share, position: Position
    ) -> None:
        self.reader, self.encoder, self.plan, self.share, self.position = (
            reader,
            encoder,
            plan,
            share,
            position,
        )

    def __iter__(self) -> Iterator[Numbered]:
        worker, workers = 0, 1
        info = get_worker_info()
        if info is not None:
            worker, workers = info.id, info.num_workers
        for chunk in _one_ahead(_chunks(self._planned(worker, workers))):
            items = np.concatenate([planned.items for planned in chunk])
            with closing(self.reader.rows(self.encoder.mixture.positions(items))) as rows:
                for number, after, items in chunk:
                    if after is None:
                        yield number, None, None
                    else:
                        read = list(islice(rows, len(items)))
                        yield number, after, self.encoder.pack(read, items)

    def _planned(self, worker: int, workers: int) -> Iterator[_Planned]:
        """Yield this worker's packs, window by window, and then the mark of the epoch's end."""
        per_step = self.plan.budget.packs_per_step // self.share.world_size
        first = number = self.position.step * per_step
        for step, after in self.plan.steps(self.position):
            for items in step.packs_of(*self.share):
                if (number - first) % workers == worker:
                    yield _Planned(number, after, items)
                number += 1
        yield _Planned(number, None, self.plan.orders[0][:0])


def whole_steps(
    packs: Iterable[Numbered], first: int, per_step: int, workers: int
) -> Iterator[tuple[list[Batch], Position]]:
    """Group packs into steps of `per_step` packs, and yield each with the position after it.

    Raises RuntimeError unless all packs of the epoch arrive in order from number `first` on and
    each of the `workers` sends its end mark, so that a lost pack or a worker that ended early is
    noticed.
    """
    due, ends, step = first, 0, []
    for number, after, batch in packs:
        if number != due or (ends and batch is not None):
            what = "its end" if batch is None else "a pack"
            raise RuntimeError(
                f"the loader gave {what} at number {number} of the epoch where pack {due} was due"
            )
        if batch is None or after is None:
            ends += 1
            continue
        step.append(batch)
        due += 1
        if len(step) == per_step:
            yield step, after
            step = []
    if ends != workers:
        raise RuntimeError(f"{ends} of {workers} loader processes came to the end of the epoch")


def _chunks(planned: Iterator[_Planned]) -> Iterator[list[_Planned]]:
    """Group consecutive packs into chunks of about CHUNK_SAMPLES samples; the first chunks are
    smaller.
    """
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
    """Yield the same chunks, while a thread makes the next one: packing a window must not delay the
    reading.
    """
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, chunks, None)
        while (chunk := upcoming.result()) is not None:
            upcoming = thread.submit(next, chunks, None)
            yield chunk


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
    # Slurm signals every process of a step: a worker that ended at once would take its rank with it
    # before the save. Ignoring the signal for good would leave a failed rank waiting for its
    # workers.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))
