"""The record of every paid request, on the disk before it is sent and after it was answered.

A ledger is a folder of numbered files of JSON lines, one file for each start of a captioner:

    sent      a request goes out; `reserved` is the most that it may cost, in dollars
    answered  it was paid: outcome, text, usage, cost, and who answered
    unpaid    the endpoint did not do it (429, 5xx, no connection): it costs nothing
    unknown   nobody knows: a time-out, a connection that broke. It may have been paid
    batched   the request stands in a batch file whose results are awaited

A request that was `sent` and has no line after it was in flight when the process died: unknown,
too. So an answer is never bought twice, but for the unknown ones, which are listed and charged to
the budget at the most that they may cost.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pargo_ds.errors import CaptionError, MachineFault
from pargo_ds.files.lock import lock_if_possible

KINDS = ("sent", "answered", "unpaid", "unknown", "batched")
Entry = dict[str, Any]


class Ledger:
    """The ledger in `folder`, held by this process alone until `close`.

    Raises CaptionError when another process has it, or a line other than the last of a file is
    damaged (nobody but a person's editor does that).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = open(folder / "lock", "w")  # noqa: SIM115  held until close
        if not lock_if_possible(self._lock, 0):
            self._lock.close()
            raise CaptionError(
                f"{folder} is in use by another captioner: two at once could ask for the same caption"
            )
        self._answers: dict[str, tuple[Path, int]] = {}
        self.cut: set[str] = set()
        """Requests whose answer was cut at max_tokens."""
        self.maybe_paid: Counter[str] = Counter()
        self.batched: dict[str, str] = {}
        self.spent = 0.0
        """Dollars: what answers cost, and the most that unknown requests may have cost."""
        self.unknown_cost = 0.0
        self.longest = {"prompt_tokens": 0, "completion_tokens": 0}
        last = 0
        for segment in sorted(folder.glob("[0-9]*.jsonl")):
            self._read(segment)
            last = int(segment.stem)
        self._path = folder / f"{last + 1:06d}.jsonl"
        self._file: Any = None
        self._size = 0
        self._broken = ""
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Let the ledger go."""
        if self._file is not None:
            self._file.close()
        self._lock.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        """Whether a request was answered."""
        return key in self._answers

    def __len__(self) -> int:
        """Requests that were answered."""
        return len(self._answers)

    def answer(self, key: str) -> Entry:
        """Return the `answered` entry of a request. Raises KeyError."""
        path, offset = self._answers[key]
        with open(path, "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    async def append(self, entry: Entry) -> None:
        """Add an entry; returns when it is on the disk.

        Entries of many requests share one fsync. Raises MachineFault when the disk refuses, then
        and for ever after.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        await future

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self.write, [entry for entry, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for _, future in batch:
                future.set_result(None)

    def write(self, entries: list[Entry]) -> None:
        """Add entries and wait for the disk; raises as `append`."""
        if self._broken:
            raise MachineFault(self._broken)
        lines = [json.dumps({"time": round(time.time(), 3), **entry}) + "\n" for entry in entries]
        try:
            if self._file is None:
                self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115
                self._sync_folder()
            self._file.write("".join(lines).encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            self._broken = (
                f"{self._path} cannot be written ({error.strerror}): without a ledger nothing is "
                "asked. Make room; the same command goes on, and nothing answered is lost"
            )
            raise MachineFault(self._broken) from error
        for entry, line in zip(entries, lines, strict=True):
            self._count(entry, self._path, self._size)
            self._size += len(line.encode())

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> None:
        """Count the entries of an older file; what was in flight at its end is unknown."""
        open_requests: dict[str, float] = {}
        for offset, entry in _entries(path):
            key = entry["key"]
            if entry["kind"] == "sent":
                open_requests[key] = float(entry["reserved"])
            elif entry["kind"] != "batched":
                open_requests.pop(key, None)
            self._count(entry, path, offset)
        for key, reserved in open_requests.items():
            self._count({"kind": "unknown", "key": key, "cost": reserved}, path, 0)

    def _count(self, entry: Entry, path: Path, offset: int) -> None:
        key, kind = entry["key"], entry["kind"]
        if kind == "batched":
            self.batched[key] = entry["file"]
        elif kind in ("answered", "unpaid"):
            self.batched.pop(key, None)
        if kind == "answered":
            self._answers.setdefault(key, (path, offset))
            if entry["outcome"] == "length":
                self.cut.add(key)
            self.spent += entry["cost"]
            for name in self.longest:
                used = (entry.get("usage") or {}).get(name)
                self.longest[name] = max(self.longest[name], used or 0)
        elif kind == "unknown":
            self.maybe_paid[key] += 1
            self.spent += entry["cost"]
            self.unknown_cost += entry["cost"]


def _entries(path: Path) -> Iterator[tuple[int, Entry]]:
    """(offset, entry) of each whole line; the last one may be torn and is left out then."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # written when the process died, and so not believed by anybody
            try:
                entry = json.loads(line)
                if entry["kind"] not in KINDS or not isinstance(entry["key"], str):
                    raise ValueError("no kind of the ledger")
            except (ValueError, KeyError, TypeError) as error:
                raise CaptionError(
                    f"{path}, byte {offset}, is damaged ({error}). It is the record of what was paid: "
                    "restore it from a copy rather than delete it"
                ) from error
            yield offset, entry
            offset += len(line)
