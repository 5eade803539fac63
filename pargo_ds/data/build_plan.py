"""What a build makes, and how a folder remembers it: only the same plan goes on with unfinished work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from pargo_ds.data.shards import HASHES, SCHEMA_VERSION, SHARD_BYTES, check_compression
from pargo_ds.data.sources import Finish, Source

WORK = ".build"
DONE = ".built"
"""Folders in OUT: of an unfinished build, and of a finished one that is being removed."""
TRAIN, HELD_OUT = "train", "held_out"
BUILD_VERSION = 3
"""Of the rules by which inputs become samples and splits; a build of another version is neither continued nor taken for
finished."""


class BuildError(ValueError):
    """A build that cannot start or go on; the message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is built. `held_out`: None, a share below 1, or a number of samples; `same_id`: what becomes of a sample
    whose id came before with other content ("number": ID#2, ID#3, ...; "drop": left out and counted).
    """

    source: Source
    finish: Finish = Finish()
    held_out: float | int | None = None
    same_id: str = "number"
    compression: str = "none"
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        check_compression(self.compression)
        if self.same_id not in ("number", "drop"):
            raise ValueError(f"same id: {self.same_id!r}; expected number or drop")
        if self.held_out is not None and not _is_share_or_number(self.held_out):
            raise ValueError(f"held out: {self.held_out}; expected a share such as 0.01 or a number such as 2000")
        if not 1 << 12 <= self.shard_bytes < 1 << 31:
            raise ValueError(f"shards of {self.shard_bytes} bytes; expected 4096 to 2147483647")

    def described(self) -> dict[str, Any]:
        """All that the result depends on, the input files' sizes and times included; plain JSON."""
        options = dataclasses.asdict(self.source)
        files = [(name, os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in options.pop("files")]
        described = {
            "schema_version": SCHEMA_VERSION,
            "build_version": BUILD_VERSION,
            "kind": type(self.source).__name__,
            "options": options,
            "files": [name for name, _, _ in files[:3]],
            "state of the files": hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16],
            **dataclasses.asdict(self.finish),
            **{name: getattr(self, name) for name in ("held_out", "same_id", "compression", "shard_bytes")},
            "hashes": HASHES,
        }
        return json.loads(json.dumps(described))


def _is_share_or_number(value: float | int) -> bool:
    """Whether a share lies between 0 and 1, without them: 1.0 may be meant as all, 1 is one sample."""
    if isinstance(value, bool):
        return False
    return value >= 1 if isinstance(value, int) else 0 < value < 1


def begin(plan: Plan, work: Path) -> None:
    """Make the work folder, or check that it belongs to the same plan; BuildError says which settings differ."""
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


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The settings in which two described plans differ, for a message; empty when they are the same."""
    flat = [{**plan, **plan.get("options", {}), "options": None} for plan in (found, wanted)]
    names = sorted(name for name in {*flat[0], *flat[1]} if flat[0].get(name) != flat[1].get(name))
    return "; ".join(f"{name}: {flat[0].get(name)!r} there, {flat[1].get(name)!r} now" for name in names)


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file, whole or not at all."""
    aside = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    aside.replace(path)
