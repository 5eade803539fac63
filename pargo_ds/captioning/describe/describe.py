"""Second stage without an endpoint: selected images -> captions.jsonl, by a captioner of our own.

What is described goes into a ledger (RUN/described) batch by batch, so a kill costs one batch, and
another selection describes only images that are new. Nothing of it is paid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pargo_ds.captioning.answer import Caption, Part
from pargo_ds.captioning.ask.captions import row_of
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.describe.captioner import Captioner, Described
from pargo_ds.captioning.run_files import Row, RunFolder, write_lines, write_object
from pargo_ds.captioning.select.image_hash import image_digest
from pargo_ds.captioning.select.select import read_selected
from pargo_ds.data.images import read_image
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import CaptionError


def describe(
    run: RunFolder, captioner: Captioner, said: Callable[[str], None] = print
) -> Counter[str]:
    """Describe the selected images that this captioner has not described yet, and write
    captions.jsonl; returns the outcomes. Raises CaptionError when another process does it.
    """
    about = captioner.about()
    outcomes: Counter[str] = Counter()
    with Ledger(run.described) as ledger:
        made = 0
        for batch in _batches(run, ledger, about, captioner.batch):
            images = [read_image(sample.images[0]).convert("RGB") for _, sample in batch]
            found = captioner.describe(images)
            ledger.write([_entry(key, one) for (key, _), one in zip(batch, found, strict=True)])
            made += len(batch)

        def rows() -> Iterator[Row]:
            for sample in read_selected(run):
                answer = ledger.answer(_key(sample, about))
                outcomes[answer["outcome"]] += 1
                notes = [answer["text"]] if answer["caption"] is None else []
                provenance = {**about, "time": answer["time"]}
                yield row_of(sample, answer["outcome"], _caption(answer), provenance, notes)

        total = write_lines(run.captions, rows())
    write_object(run.money, {"spent": 0.0, "answers": 0, "maybe_paid": []})
    said(f"{about['model']}: {made} images described, {total - made} were there")
    return outcomes


def _batches(
    run: RunFolder, ledger: Ledger, about: dict[str, Any], size: int
) -> Iterator[list[tuple[str, Sample]]]:
    """The selected images that the ledger does not have, each once, with their keys."""
    batch: dict[str, Sample] = {}
    for sample in read_selected(run):
        key = _key(sample, about)
        if key in ledger:
            continue
        batch[key] = sample
        if len(batch) == size:
            yield list(batch.items())
            batch = {}
    if batch:
        yield list(batch.items())


def _key(sample: Sample, about: dict[str, Any]) -> str:
    """What stands for an image and all that its caption depends on."""
    said = json.dumps({"image": image_digest(sample.images[0]), **about}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _entry(key: str, found: Described) -> dict[str, Any]:
    caption = None
    if found.caption is not None:
        caption = dataclasses.asdict(found.caption)
    return {"kind": "answered", "key": key, "outcome": found.outcome, "caption": caption,
            "text": found.note, "cost": 0.0}  # fmt: skip


def _caption(answer: dict[str, Any]) -> Caption | None:
    caption = answer["caption"]
    if caption is None:
        return None
    return Caption(caption["whole"], tuple(Part(**part) for part in caption["parts"]))


def parse_captioner(said: str) -> tuple[str, str]:
    """Return (name, folder) of a captioner on the command line: `endpoint`, `truth`, `detector`,
    `detector:FOLDER` or `pargo:FOLDER`. Raises CaptionError for another one or a missing folder.
    """
    name, _, folder = said.partition(":")
    if name == "detector" or (name == "pargo" and folder) or said in ("endpoint", "truth"):
        return name, folder
    raise CaptionError(
        f"there is no captioner {said!r}; there are endpoint, truth, detector (or detector:FOLDER) and "
        "pargo:FOLDER"
    )


def make_captioner(said: str, max_tokens: int) -> Captioner:
    """Make a captioner of our own, `detector` or `pargo:FOLDER`, with its model. Raises CaptionError
    as `parse_captioner`, and when its model cannot be had.
    """
    name, folder = parse_captioner(said)
    if name == "detector":
        from pargo_ds.captioning.describe.detected import Detected

        return Detected(folder)
    assert name == "pargo", "the others ask an endpoint, or the scenes' truth"
    from pargo_ds.captioning.describe.exported import Exported

    return Exported(folder, max_tokens)
