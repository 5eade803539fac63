"""Counting the text tokens and image sizes of every conversation in a folder of shards, over
several processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.batch import ConversationEncoder
from pargo_ds.config import DataSection
from pargo_ds.data.conversation import conversations_of, encode_text, sample_error
from pargo_ds.data.images import image_header
from pargo_ds.data.shards.folder import ShardFolder
from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.shards.shard_files import opened_shard
from pargo_ds.errors import SampleError

log = logging.getLogger(__name__)

ALONE_BELOW = 1000
"""Samples that one process measures sooner than several start."""
MOST_PROCESSES = 8


class Columns(NamedTuple):
    """What is stored of a folder: one entry per conversation, but image sizes, which are one row
    per image.
    """

    samples: NDArray[np.uint32]
    """Position of the sample in the folder."""
    views: NDArray[np.uint8]
    """Which of the sample's conversations (an index into `conversation.conversations_of`)."""
    text_tokens: NDArray[np.uint32]
    """Tokens without those of images."""
    images: NDArray[np.uint16]
    image_sizes: NDArray[np.uint32]
    """(images of all samples in stored order, 2) width and height as stored."""


DTYPES = (
    np.dtype(np.uint32), np.dtype(np.uint8), np.dtype(np.uint32), np.dtype(np.uint16), np.dtype(np.uint32)
)  # fmt: skip
"""Of the columns, in their order."""


def default_processes() -> int:
    """Return the number of processes for measuring on this machine, where the other ranks wait
    meanwhile.
    """
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def measure(
    folder: ShardFolder,
    data: DataSection,
    processor: ConversationEncoder,
    processes: int | None = None,
) -> Columns:
    """Encode the text of every conversation and count (progress bar on a terminal); images are not
    decoded.

    Each shard is compared with its hash and measured by itself, so a folder in an object store
    needs the disk of a few shards only.

    Raises:
        SampleError: the first malformed sample in stored order; with data.refused: skip it is left
            out instead.
        ShardError, StoreError: a shard that cannot be read.
        RuntimeError: one of the processes was killed.
    """
    starts = folder.starts
    if starts[-1] < ALONE_BELOW:
        processes = 1
    task = _Task(folder, data, processor)
    parts: list[Columns] = []
    with (
        _mapped(task, len(starts) - 1, processes or default_processes()) as measured,
        tqdm(
            total=int(starts[-1]), desc=f"measuring {folder.path}", unit="sample", disable=None
        ) as bar,
    ):
        for number, part in enumerate(measured):
            parts.append(part)
            bar.update(int(starts[number + 1] - starts[number]))
    return Columns(
        *(np.concatenate(column) for column in zip(_columns([], []), *parts, strict=True))
    )


class _Task:
    """Measures shards by their number in the index."""

    def __init__(
        self, folder: ShardFolder, data: DataSection, processor: ConversationEncoder
    ) -> None:
        self.folder, self.data, self.processor = folder, data, processor

    def __call__(self, number: int) -> Columns:
        rows: list[tuple[int, int, int, int]] = []
        sizes: list[tuple[int, int]] = []
        with opened_shard(self.folder, number) as shard:
            for place in range(len(shard)):
                try:
                    sample = Sample.from_mds(shard.row(place), where=self.folder.path)
                    lengths = list(self._text_tokens(sample))
                    own_sizes = _sizes(sample, self.folder.path)
                except SampleError as error:
                    if self.data.refused == "error":
                        raise _with_advice(error) from error
                    log.debug("left out: %s", error)
                    continue
                position = int(self.folder.starts[number]) + place
                for view, tokens in enumerate(lengths):
                    rows.append((position, view, tokens, len(sample.images)))
                sizes += own_sizes
        return _columns(rows, sizes)

    def _text_tokens(self, sample: Sample) -> Iterator[int]:
        for turns in conversations_of(sample, self.data, self.folder.path):
            ids, _ = encode_text(sample, turns, self.processor, self.folder.path)
            yield len(ids) - len(sample.images) * self.processor.visual_tokens


def _with_advice(error: SampleError) -> SampleError:
    return SampleError(f"{error}. data.refused: skip leaves such samples out and counts them")


_task: _Task | None = None
"""The work of a process in the pool; it comes with the fork, not through a pickle."""


def _start(task: _Task) -> None:
    global _task
    _task = task


def _run(number: int) -> Columns:
    assert _task is not None
    return _task(number)


@contextmanager
def _mapped(task: _Task, shards: int, processes: int) -> Iterator[Iterable[Columns]]:
    """The results for all shards in order, from as many processes."""
    if processes == 1 or shards == 1:
        yield map(task, range(shards))
        return
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # its threads and forked processes do not go together
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_start, initargs=(task,)
    )
    try:
        yield pool.map(_run, range(shards))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a process that measured {task.folder.path} was killed; if memory was short, use fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _columns(rows: list[tuple[int, int, int, int]], sizes: list[tuple[int, int]]) -> Columns:
    table = np.array(rows, np.int64).reshape(-1, 4).T
    columns = [*table, np.array(sizes, np.int64).reshape(-1, 2)]
    return Columns(*(column.astype(dtype) for column, dtype in zip(columns, DTYPES, strict=True)))


def _sizes(sample: Sample, where: str) -> list[tuple[int, int]]:
    """Width and height of each image from its header. Raises SampleError for one that has none."""
    sizes = []
    for number, image in enumerate(sample.images):
        try:
            _, _, width, height = image_header(image)
        except ValueError as error:
            raise sample_error(sample, where, f"image {number} {error}") from error
        sizes.append((width, height))
    return sizes
