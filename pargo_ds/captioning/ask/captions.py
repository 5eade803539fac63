"""Second stage: selected images -> captions.jsonl, from the ledger's answers or the scenes' truth."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pargo_ds.captioning.answer import Caption, read_answer
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.prompt import Prompt
from pargo_ds.captioning.ask.request import Job, Parameters, requests_of
from pargo_ds.captioning.ask.truth import NAME, truth_caption
from pargo_ds.captioning.run_files import Row, RunFolder, write_lines, write_object
from pargo_ds.captioning.select.image_hash import image_digest
from pargo_ds.captioning.select.select import read_selected
from pargo_ds.data.shards.schema import Sample

OK, NO_ANSWER, UNREADABLE, LENGTH = "ok", "no answer", "unreadable", "length"


def jobs_of(run: RunFolder) -> Iterator[Job]:
    """Yield the selected images as jobs, in their order."""
    for sample in read_selected(run):
        yield job_of(sample)


def job_of(sample: Sample) -> Job:
    """Return a sample as a job."""
    return Job(sample.id, sample.images[0], sample.captions.get("coarse", ""))


def write_truth(run: RunFolder, wrong: float = 0.0) -> Counter[str]:
    """Write captions.jsonl from the scenes' truth; returns the outcomes.

    Args:
        wrong: share of the scenes that get the caption of the scene before them, drawn by their
            images' digests; `provenance.wrong` marks them. It shows what a filter is worth.
    """
    outcomes: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        before: Caption | None = None
        for sample in read_selected(run):
            outcomes[OK] += 1
            caption = truth_caption(sample)
            row = row_of(sample, OK, caption, {"model": NAME})
            if before is not None and _share_of(row["image"]) < wrong:
                row = row_of(sample, OK, before, {"model": NAME, "wrong": True})
            before = caption
            yield row

    write_lines(run.captions, rows())
    write_object(run.money, {"spent": 0.0, "answers": 0, "maybe_paid": []})
    return outcomes


def write_captions(
    run: RunFolder, ledger: Ledger, prompt: Prompt, parameters: Parameters
) -> Counter[str]:
    """Write captions.jsonl from the answers in the ledger; returns how often each outcome came.

    Every selected image has a row. Those without a caption say why: no answer (not asked yet, or
    asked in vain), refused, blocked, length (cut, twice), rejected (an image that the endpoint does
    not take), unreadable (no caption could be read of the answer).
    """
    outcomes: Counter[str] = Counter()
    ids: dict[str, str] = {}
    money = {"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0}
    seen: set[str] = set()

    def rows() -> Iterator[Row]:
        for sample in read_selected(run):
            requests = requests_of(job_of(sample), prompt, parameters, ledger.cut)
            ids.update((key, sample.id) for key, _ in requests if ledger.maybe_paid.get(key))
            for key, _ in requests:
                if key in ledger and key not in seen:
                    seen.add(key)
                    _add(money, ledger.answer(key))
            row = _captioned(sample, requests, ledger, prompt)
            outcomes[row["outcome"]] += 1
            yield row

    write_lines(run.captions, rows())
    maybe_paid = []
    for key in sorted(ids):
        maybe_paid.append({"key": key, "id": ids[key], "times": ledger.maybe_paid[key]})
    write_object(
        run.money,
        {
            "spent": money["cost"],
            "answers": len(seen),
            "prompt_tokens": money["prompt_tokens"],
            "completion_tokens": money["completion_tokens"],
            "ledger_spent": ledger.spent,
            "ledger_unknown": ledger.unknown_cost,
            "maybe_paid": maybe_paid,
        },
    )
    return outcomes


def _add(money: dict[str, Any], answer: dict[str, Any]) -> None:
    money["cost"] += answer["cost"]
    for name in ("prompt_tokens", "completion_tokens"):
        money[name] += (answer["usage"] or {}).get(name, 0)


def _captioned(
    sample: Sample, requests: list[tuple[str, Parameters]], ledger: Ledger, prompt: Prompt
) -> Row:
    key, parameters = next(
        (found for found in reversed(requests) if found[0] in ledger), requests[-1]
    )
    if key not in ledger:
        return row_of(sample, NO_ANSWER, None, {"key": key})
    answer = ledger.answer(key)
    provenance = {
        "key": key,
        "prompt": prompt.name,
        "model": parameters.model,
        "answered_by": answer["model"],
        "request_id": answer["request_id"],
        "time": answer["time"],
        "cost": answer["cost"],
        "usage": answer["usage"],
        **dataclasses.asdict(parameters),
    }
    if answer["outcome"] != OK:
        return row_of(sample, answer["outcome"], None, provenance, [answer["text"][:300]])
    try:
        caption = read_answer(answer["text"], structured=prompt.schema is not None)
    except ValueError as error:
        return row_of(sample, UNREADABLE, None, provenance, [str(error)])
    return row_of(sample, OK, caption, provenance)


def _share_of(digest: str) -> float:
    """A number from 0 to 1 that depends on an image alone, and not on its draw."""
    return int(hashlib.sha256(f"wrong {digest}".encode()).hexdigest()[:8], 16) / 16**8


def row_of(
    sample: Sample,
    outcome: str,
    caption: Caption | None,
    provenance: dict[str, Any],
    notes: list[str] | None = None,
) -> Row:
    """Return the row of captions.jsonl of a sample; without a caption its texts are empty."""
    facts = sample.meta.get("selected", {})
    caption = caption or Caption("")
    return {
        "id": sample.id,
        "image": facts.get("image") or image_digest(sample.images[0]),
        "outcome": outcome,
        "global": caption.whole,
        "parts": [dataclasses.asdict(part) for part in caption.parts],
        "coarse": sample.captions.get("coarse", ""),
        "notes": [*caption.notes, *(notes or [])],
        "provenance": provenance,
    }
