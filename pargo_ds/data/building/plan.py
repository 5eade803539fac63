"""The plan of a build, and how a folder records it: only a build with the same plan continues
unfinished work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from pargo_ds.data.shards.mds import HASHES, SCHEMA_VERSION, SHARD_BYTES, check_compression
from pargo_ds.data.sources import SampleTransform, Source
from pargo_ds.errors import BuildError
from pargo_ds.files.whole_file import write_whole

WORK = ".build"
DONE = ".built"
"""Names of two folders in OUT: the work of an unfinished build, and that of a finished build while
it is removed.
"""
BUILD_VERSION = 3
"""Version of the rules by which inputs become samples and splits. A build of another version is
neither continued nor accepted as finished.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a build.

    Attributes:
        validation: the held-out part: None, a share below 1, or a number of samples.
        same_id: what is done with a sample whose id occurred before with other content. "number":
            it is renamed to ID#2, ID#3, ...; "drop": it is left out and counted.
    """

    source: Source
    transform: SampleTransform = SampleTransform()
    validation: float | int | None = None
    same_id: str = "number"
    compression: str = "none"
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        check_compression(self.compression)
        if self.same_id not in ("number", "drop"):
            raise ValueError(f"same id: {self.same_id!r}; expected number or drop")
        if self.validation is not None and not _is_share_or_number(self.validation):
            raise ValueError(
                f"held out: {self.validation}; expected a share such as 0.01 or a number such as 2000"
            )
        if not 1 << 12 <= self.shard_bytes < 1 << 31:
            raise ValueError(f"shards of {self.shard_bytes} bytes; expected 4096 to 2147483647")

    def described(self) -> dict[str, Any]:
        """Return everything on which the result depends, including the sizes and times of the input
        files, as JSON values.
        """
        options = dataclasses.asdict(self.source)
        files = [_state_of(name) for name in options.pop("files")]
        described = {
            "schema_version": SCHEMA_VERSION,
            "build_version": BUILD_VERSION,
            "kind": type(self.source).__name__,
            "options": options,
            "files": [name for name, _, _ in files[:3]],
            "state of the files": hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16],
            **dataclasses.asdict(self.transform),
            "validation": self.validation,
            "same_id": self.same_id,
            "compression": self.compression,
            "shard_bytes": self.shard_bytes,
            "hashes": HASHES,
        }
        return json.loads(json.dumps(described))


def _is_share_or_number(value: float | int) -> bool:
    """Whether `value` is a number of samples (int, from 1) or a share (float, above 0 and below 1).
    1.0 is neither, because it might mean one sample or all samples.
    """
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return value >= 1
    return 0 < value < 1


def start_build(plan: Plan, work: Path) -> None:
    """Make the work folder, or check that it belongs to the same plan.

    Raises BuildError naming the settings that differ.
    """
    described = plan.described()
    if (work / "plan.json").is_file():
        differing = differences(json.loads((work / "plan.json").read_text()), described)
        if differing:
            raise BuildError(
                f"{work.parent} holds an unfinished build with other settings ({differing}). Give the same ones to go "
                f"on with it, or delete {work.parent} to begin anew"
            )
    (work / "chunks").mkdir(parents=True, exist_ok=True)
    write_json(work / "plan.json", described)


def _state_of(file: str) -> tuple[str, int, int]:
    """(name, bytes, time of the last change in nanoseconds)."""
    state = os.stat(file)
    return file, state.st_size, state.st_mtime_ns


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return the settings in which two described plans differ, for a message; "" if there are none."""
    there, now = _flat(found), _flat(wanted)
    said = []
    for name in sorted({*there, *now}):
        before, after = there.get(name), now.get(name)
        if before != after:
            said.append(f"{name}: {before!r} there, {after!r} now")
    return "; ".join(said)


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    return {**plan, **plan.get("options", {}), "options": None}


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file, whole or not at all; several machines may write the same file."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    write_whole(path, text, writer=f"{socket.gethostname()}-{os.getpid()}")
