"""The same requests as files for OpenAI's Batch API (half the price) and for `vllm run-batch`.

A line is {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": {...}}; a line
of the results has the same custom_id. What stands in a file is noted in the ledger as batched: it is
not asked for online while the results are awaited.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pargo_ds.captioning.ask.budget import InputTokenBound, Price
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.prompt import Prompt
from pargo_ds.captioning.ask.request import Job, Parameters, request_body, requests_of
from pargo_ds.captioning.ask.verdict import Verdict, verdict
from pargo_ds.data.sources import Reject
from pargo_ds.errors import CaptionError

URL = "/v1/chat/completions"
FILE_BYTES = 190_000_000
FILE_REQUESTS = 50_000
"""What OpenAI takes in one file is 200 MB and 50,000 requests."""


def write_batches(
    jobs: Iterable[Job],
    folder: Path,
    ledger: Ledger,
    prompt: Prompt,
    parameters: Parameters,
    *,
    price: Price,
    limit: float,
    response_format: bool = True,
    file_bytes: int = FILE_BYTES,
    file_requests: int = FILE_REQUESTS,
) -> list[Path]:
    """Write every request that nobody has answered and no file holds, as batch-N.jsonl; returns the
    files.

    Stops before the most that all of it may cost would exceed the `limit` (dollars; `price` is that
    of batches). Each file is whole before the ledger names it. Raises CaptionError when the budget
    has no room for one request.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = itertools.count(1 + len(list(folder.glob("batch-*.jsonl"))))
    room = [limit - ledger.spent]
    lines = _lines(jobs, ledger, prompt, parameters, price, room, response_format)
    written: list[Path] = []
    for keys, content in _files(lines, file_bytes, file_requests):
        path = folder / f"batch-{next(number):05d}.jsonl"
        aside = path.with_suffix(".unfinished")
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        ledger.write([{"kind": "batched", "key": key, "file": path.name} for key in keys])
        aside.replace(path)
        written.append(path)
    if not written and room[0] < 0:
        raise CaptionError(
            f"the budget of ${limit:.2f} has no room for one request: ${ledger.spent:.2f} is spent"
        )
    return written


def _lines(
    jobs: Iterable[Job],
    ledger: Ledger,
    prompt: Prompt,
    parameters: Parameters,
    price: Price,
    room: list[float],
    response_format: bool,
) -> Iterator[tuple[str, bytes]]:
    input_bound = InputTokenBound(texts=sum(map(len, prompt.texts("").values())) + 4000)
    input_bound.answers, input_bound.greatest = len(ledger), ledger.longest["prompt_tokens"]
    seen: set[str] = set()
    for job in jobs:
        key, own = requests_of(job, prompt, parameters, ledger.cut)[-1]
        if key in ledger or key in ledger.batched or key in seen:
            continue
        try:
            body = request_body(job, prompt, own, response_format=response_format)
        except Reject:
            continue  # the online stage records it as rejected
        room[0] -= price.of(input_bound.input_tokens, own.max_tokens)
        if room[0] < 0:
            return
        seen.add(key)
        line = {"custom_id": key, "method": "POST", "url": URL, "body": body}
        yield key, json.dumps(line).encode() + b"\n"


def _files(
    lines: Iterator[tuple[str, bytes]], most_bytes: int, most: int
) -> Iterator[tuple[list[str], bytes]]:
    keys: list[str] = []
    parts: list[bytes] = []
    size = 0
    for key, line in lines:
        if keys and (size + len(line) > most_bytes or len(keys) == most):
            yield keys, b"".join(parts)
            keys, parts, size = [], [], 0
        keys.append(key)
        parts.append(line)
        size += len(line)
    if keys:
        yield keys, b"".join(parts)


def read_results(paths: list[Path], ledger: Ledger, price: Price) -> Counter[str]:
    """Take the results of batches into the ledger; returns how often each outcome came.

    A result that is there already is counted as known. Requests that failed (an error, a status
    other than 200, expired) are free to be asked again. Raises CaptionError for a line that is no
    result.
    """
    outcomes: Counter[str] = Counter()
    for path in paths:
        entries = []
        for number, line in enumerate(_text_lines(path), start=1):
            key, found = _result(line, f"{path}, line {number}")
            if key in ledger:
                outcomes["known"] += 1
                continue
            entries.append(_entry(key, found, price))
            outcomes[found.outcome or "failed"] += 1
        ledger.write(entries)
    return outcomes


def forget(name: str, ledger: Ledger) -> int:
    """Free the requests of a batch file that was never run; returns their number.

    Raises CaptionError when no awaited request stands in a file of that name.
    """
    keys = [key for key, file in ledger.batched.items() if file == Path(name).name]
    if not keys:
        raise CaptionError(
            f"no request of {Path(name).name} is awaited; awaited are "
            f"{', '.join(sorted(set(ledger.batched.values()))) or 'none'}"
        )
    ledger.write([{"kind": "unpaid", "key": key, "reason": "batch forgotten"} for key in keys])
    return len(keys)


def _text_lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionError(f"{path} cannot be read as a file of results: {error}") from error


def _result(line: str, where: str) -> tuple[str, Verdict]:
    try:
        value = json.loads(line)
        key, response = value["custom_id"], value.get("response") or {}
        status, body = response.get("status_code", 0), response.get("body")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaptionError(
            f"{where} is no result of a batch ({type(error).__name__}: {error}); expected "
            '{"custom_id": ..., "response": {"status_code": 200, "body": {...}}}'
        ) from error
    if not isinstance(key, str):
        raise CaptionError(f"{where}: custom_id is {key!r}; expected the key of a request")
    if status == 200 and body is not None:
        return key, verdict(200, {}, json.dumps(body).encode())
    return key, Verdict("again", f"{status}: {json.dumps(value.get('error') or body)[:200]}")


def _entry(key: str, found: Verdict, price: Price) -> dict[str, Any]:
    if found.kind != "answered":
        return {"kind": "unpaid", "key": key, "reason": found.reason}
    usage = found.usage or {"prompt_tokens": 0, "completion_tokens": 0}
    return {
        "kind": "answered",
        "key": key,
        "outcome": found.outcome,
        "text": found.text,
        "usage": found.usage,
        "cost": price.of(usage["prompt_tokens"], usage["completion_tokens"]),
        "model": found.model,
        "request_id": found.request_id,
    }
