"""Merge all chunks of a build into one data set: duplicates are left out, the shards of each split
get consecutive numbers and one index, and all inputs are accounted for.

Every step can be repeated: decisions depend only on files that stay until the end, shards are moved
by renaming, and the index is written last. So a merge that was killed is simply started again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pargo_ds.data.building.chunk import chunk_name
from pargo_ds.data.building.duplicates import Repeats, find_repeats
from pargo_ds.data.building.merge_shards import SplitWriter, index_notes
from pargo_ds.data.building.plan import DONE, WORK, write_json
from pargo_ds.data.building.sample_table import SampleTable, inputs_of
from pargo_ds.data.building.splits import groups_of, validation_samples
from pargo_ds.data.shards.mds import write_index
from pargo_ds.data.sources.rejects import reject_table
from pargo_ds.errors import BuildError
from pargo_ds.files.lock import lock_if_possible
from pargo_ds.files.whole_file import whole_file

REJECTS, SUMMARY = "rejects.jsonl", "build.json"


@dataclass(frozen=True)
class Merged:
    """The account of a data set. `left_out`: number of inputs by the kind of reject; `splits`:
    number of samples by the name of the split's folder ("" without a split); `changed`: number of
    samples by the part of their input that they lost, including samples that were later left out as
    duplicates.
    """

    inputs: int
    samples: int
    left_out: dict[str, int]
    splits: dict[str, int]
    changed: dict[str, int] = field(default_factory=dict)

    def table(self) -> str:
        """Return the account as a table for people."""
        return reject_table(self.inputs, self.samples, self.left_out, self.changed)


def merge(out: Path, max_rejects: float | None = None) -> Merged:
    """Make one data set of the chunks in OUT/.build and remove the chunks. A data set that was
    merged before is left unchanged. Without `max_rejects` the share is that of the parts.

    Raises BuildError when chunks are missing, no sample is left, or more than the share
    `max_rejects` of the inputs are rejects (duplicates do not count). The chunks are then kept.
    """
    work = out / WORK
    if not work.is_dir():
        if (out / SUMMARY).is_file():
            return read_summary(out)
        raise BuildError(f"{out} holds no unfinished build; nothing to merge")
    with open(work / "lock", "w") as lock:
        lock_if_possible(lock)
        if not work.is_dir():  # another process has just merged it
            return read_summary(out)
        plan = json.loads((work / "plan.json").read_text())
        chunks = _all_chunks(out)
        if max_rejects is None:
            max_rejects = json.loads((work / "chunks.json").read_text())["max_rejects"]
        table = SampleTable(chunks)
        repeats = find_repeats(
            table.rows["id"], table.rows["content"], table.names, plan["same_id"]
        )
        merged = _account(chunks, table, repeats, out, max_rejects)
        validation = _validation(table, repeats, plan["validation"])
        splits = SplitWriter(table, repeats, validation, plan, out).write()
        result = replace(merged, splits=splits)
        if sum(splits.values()) != result.samples:
            raise RuntimeError(
                f"{out}: {splits} samples were written, {result.samples} expected: a fault of the program"
            )
        for left_by_a_kill in out.glob(f".{SUMMARY}.*"):
            left_by_a_kill.unlink()
        write_json(out / SUMMARY, {"plan": plan, "counts": result.__dict__})
        for name in sorted(splits, reverse=True):
            write_index(out / name, json.loads(index_notes(work, name).read_text()))
        # Renamed first: a work folder that is half removed would look like an unfinished build.
        work.rename(out / DONE)
    shutil.rmtree(out / DONE)
    return result


def read_summary(out: Path) -> Merged:
    """Return the account of a data set that was merged before."""
    return Merged(**json.loads((out / SUMMARY).read_text())["counts"])


def _all_chunks(out: Path) -> list[Path]:
    work = out / WORK
    built = sum(1 for path in (work / "chunks").iterdir() if not path.name.startswith("."))
    if not (work / "chunks.json").is_file():
        raise BuildError(
            f"{out}: no part has seen all of the input yet ({built:,} chunks are built); go on building"
        )
    count = json.loads((work / "chunks.json").read_text())["chunks"]
    missing = [n for n in range(count) if not (work / "chunks" / chunk_name(n)).is_dir()]
    if missing:
        raise BuildError(
            f"{out}: {len(missing):,} of {count:,} chunks are missing (the first: {missing[0]}); build the parts that "
            "are not finished, with the command that began them"
        )
    return [work / "chunks" / chunk_name(n) for n in range(count)]


def _dropped_lines(table: SampleTable, repeats: Repeats, chunk: int) -> dict[int, tuple[str, str]]:
    """The lines of a chunk's inputs whose samples are dropped, each with the reason and the id of
    the sample that it repeats.
    """
    dropped = {}
    for position in table.span(chunk):
        if position in repeats.dropped:
            dropped[int(table.rows["line"][position])] = repeats.dropped[position]
    return dropped


def _account(
    chunks: list[Path], table: SampleTable, repeats: Repeats, out: Path, max_rejects: float
) -> Merged:
    """Write rejects.jsonl, with one line for each input that gives no sample, and check that every
    input is accounted for.
    """
    left_out: Counter[str] = Counter()
    example: dict[str, str] = {}
    inputs = 0
    with whole_file(out / REJECTS) as file:
        for number, chunk in enumerate(chunks):
            dropped = _dropped_lines(table, repeats, number)
            for line, fields in enumerate(inputs_of(chunk)):
                inputs += 1
                if line in dropped:
                    kind, other = dropped[line]
                    fields |= {
                        "kind": kind,
                        "reason": f"the same as sample {other}",
                        "repeats": other,
                    }
                if "kind" in fields:
                    left_out[fields["kind"]] += 1
                    if "repeats" not in fields:
                        example.setdefault(fields["kind"], fields["reason"])
                    file.write(json.dumps(fields) + "\n")
    samples = len(table.rows) - len(repeats.dropped)
    if inputs != samples + sum(left_out.values()):
        raise RuntimeError(
            f"{out}: {inputs} inputs, {samples} samples, {dict(left_out)}: a fault of the program"
        )
    account = Merged(inputs, samples, dict(sorted(left_out.items())), {}, _changed(chunks))
    rejects = sum(left_out.values()) - len(repeats.dropped)
    if rejects > max_rejects * inputs or samples == 0:
        found = "no sample is left"
        if rejects:
            found = f"{rejects:,} of {inputs:,} inputs are rejects"
        shown = ""
        if example:
            commonest = max(example, key=left_out.__getitem__)
            shown = f", for example ({commonest}): {example[commonest]}"
        raise BuildError(
            f"{out}: {found}; at most {max_rejects:.0%} are accepted (--max-rejects). {out / REJECTS} names each"
            f"{shown}. The work is kept: the same command with another --max-rejects goes on; for other options "
            f"delete {out} first\n{account.table()}"
        )
    return account


def _changed(chunks: list[Path]) -> dict[str, int]:
    """Number of samples of all chunks, by the way in which they were changed."""
    changed: Counter[str] = Counter()
    for chunk in chunks:
        changed.update(json.loads((chunk / "chunk.json").read_text())["changed"])
    return dict(sorted(changed.items()))


def _validation(
    table: SampleTable, repeats: Repeats, wanted: float | int | None
) -> NDArray[np.bool_]:
    """Return the mask of the held-out samples. Samples that share images or ids stay together."""
    rows = table.rows
    kept = np.ones(len(rows), np.bool_)
    kept[list(repeats.dropped)] = False
    return validation_samples(groups_of(rows["unit"], rows["id"], table.links), kept, wanted)
