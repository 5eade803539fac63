"""Build chunks of finished shards from a source, in parallel. Each chunk is whole or absent, and
`merge.py` makes one data set of all chunks.

    OUT/.build/plan.json         what is being built; a start with another plan is refused
               chunks.json       number of chunks and how many rejects are accepted, written when
                                 all of the input was seen
               chunks/00000017/  train/ and validation/ (shards, index.json),
                                 inputs.jsonl (one line for each input),
                                 digests.npy (one row for each sample), chunk.json (counts)

A chunk depends on the plan and its inputs only, not on the process that builds it. So any number of
processes, machines or starts gives the same bytes, and after a kill only the missing chunks are
built.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pargo_ds.data.building.chunk import chunk_name
from pargo_ds.data.building.plan import WORK, Plan, start_build, write_json
from pargo_ds.data.building.workers import Workers
from pargo_ds.errors import BuildError

EARLY_INPUTS = 1000


def build_chunks(
    plan: Plan,
    out: Path,
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    max_rejects: float = 1,
) -> int:
    """Build the missing chunks of part i of n into OUT/.build; return the number of chunks that
    existed before.

    Raises BuildError for the folder of another plan, for a dead worker process, and early when of
    many inputs more than half, and more than the share `max_rejects`, are rejects. Raises
    SourceError and OSError as the source does.
    """
    work = out / WORK
    found = count = 0
    with contextlib.closing(plan.source.chunks()) as chunks:
        first = next(chunks, None)  # raises for an unreadable file before anything is written
        if first is None:
            raise BuildError(f"there is nothing in {', '.join(plan.source.files[:3])}")
        start_build(plan, work)
        title = "building"
        if part[1] > 1:
            title = f"part {part[0]} of {part[1]}"
        with (
            _Bar(title, plan.source.weight() // part[1]) as bar,
            Workers(plan, work / "chunks", workers) as pool,
        ):
            for number, chunk in enumerate(itertools.chain([first], chunks)):
                count = number + 1
                if number % part[1] != part[0]:
                    continue
                if (work / "chunks" / chunk_name(number)).is_dir():
                    found += 1
                    bar.skip(chunk.weight)
                    continue
                for weight, counts in pool.submit(number, chunk):
                    bar.add(weight, counts, max_rejects)
            for weight, counts in pool.finish():
                bar.add(weight, counts, max_rejects)
    write_json(work / "chunks.json", {"chunks": count, "max_rejects": max_rejects})
    return found


class _Bar(contextlib.AbstractContextManager["_Bar"]):
    """The progress bar of a build. Share and remaining time follow the weight of the chunks; beside
    them the bar shows samples, rejects and samples per second.
    """

    def __init__(self, title: str, total: int) -> None:
        shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=max(total, 1), desc=title, bar_format=shape, disable=None)
        self.tally: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.started = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def skip(self, weight: int) -> None:
        """Take a chunk that exists already out of the total: the bar shows the remaining work."""
        self.bar.total = max((self.bar.total or 0) - weight, 1)

    def add(self, weight: int, counts: dict[str, Any], max_rejects: float) -> None:
        """Count a finished chunk; raise BuildError when too many of the inputs are rejects."""
        self.tally.update({"inputs": counts["inputs"], "samples": counts["samples"]})
        self.kinds.update(counts["rejects"])
        inputs, samples = self.tally["inputs"], self.tally["samples"]
        rate = samples / max(time.monotonic() - self.started, 1e-3)
        self.bar.set_postfix_str(
            f"{samples:,} samples, {inputs - samples:,} rejects, {rate:,.0f} samples/s",
            refresh=False,
        )
        self.bar.update(weight)
        if inputs >= EARLY_INPUTS and inputs - samples > max(0.5, max_rejects) * inputs:
            kind, often = self.kinds.most_common(1)[0]
            raise BuildError(
                f"{inputs - samples:,} of the first {inputs:,} inputs are rejects; {often:,}: {kind}, for example: "
                f"{counts['example']}. Look at the options; --max-rejects 1 goes on whatever comes"
            )
