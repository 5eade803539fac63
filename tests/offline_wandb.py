"""What an offline wandb run has written, read without wandb's own reader (which its releases move
about).

A .wandb file is LevelDB's log format: blocks of 32 KiB, in them pieces with a checksum, a length
and a kind.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

HEADER, BLOCK = 7, 1 << 15
WHOLE, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[bytes]:
    """The records of one file, up to where it was cut off."""
    data, place, record = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + HEADER])
        piece = data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        record = piece if kind in (WHOLE, FIRST) else record + piece
        if kind in (WHOLE, LAST):
            yield record


def reported_steps(run_dir: Path) -> list[int]:
    """Steps in the history of all offline segments of a run, oldest segment first: what `wandb
    sync` would send.
    """
    from wandb.proto import wandb_internal_pb2

    steps = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        for record in map(wandb_internal_pb2.Record.FromString, records(path)):
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
    return steps
