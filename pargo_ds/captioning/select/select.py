"""First stage: from all sources and shards, which images are captioned.

The draw is a hash of the image, so it stays when data grows: with a share nothing that was chosen
leaves, with a number only the highest draws make room. Copies go: exact ones by the file's hash,
near ones by a perceptual hash; of those the lowest draw stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pargo_ds.captioning.run_files import (
    Row,
    RunFolder,
    needed,
    read_lines,
    read_object,
    write_lines,
    write_object,
)
from pargo_ds.captioning.select.candidates import Candidates
from pargo_ds.captioning.select.image_hash import near_pairs
from pargo_ds.data.building.delivery import Destination, build
from pargo_ds.data.building.plan import Plan
from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.sources import Source
from pargo_ds.errors import CaptionError

KEPT, SAME, NEAR, BEYOND, UNSAFE = range(5)
KINDS = ("kept", "same image", "near duplicate", "beyond the number", "not safe for work")
NSFW = 0.5
"""Score from which an image is left out, where images have one."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What becomes of each candidate (candidates,): one of KINDS; `instead` is the position of the
    image that it repeats, -1 for none.
    """

    kinds: NDArray[np.int8]
    instead: NDArray[np.int64]


def choose(
    draws: NDArray[np.float64],
    images: NDArray[Any],
    hashes: NDArray[np.uint64],
    *,
    number: int | None = None,
    distance: int = 3,
    unsafe: NDArray[np.bool_] | None = None,
) -> Choice:
    """Decide about all candidates, which are given by draw, identity and perceptual hash (each
    (candidates,)).

    Those that are `unsafe` (candidates,) go first. Of equal images the first stays; of near ones (at
    most `distance` bits of 64 apart; -1: not looked for) that with the lowest draw; of the rest the
    `number` with the lowest draws.
    """
    kinds = np.full(len(draws), KEPT, np.int8)
    instead = np.full(len(draws), -1, np.int64)
    order = np.lexsort((np.arange(len(draws)), draws))
    _, first, inverse = np.unique(images, return_index=True, return_inverse=True)
    repeated = first[inverse] != np.arange(len(images))
    kinds[repeated], instead[repeated] = SAME, first[inverse][repeated]
    if unsafe is not None:
        kinds[unsafe & ~repeated] = UNSAFE
    if distance >= 0:
        _mark_near(order[kinds[order] == KEPT], hashes, distance, kinds, instead)
    if number is not None:
        kept = order[kinds[order] == KEPT]
        kinds[kept[number:]] = BEYOND
    return Choice(kinds, instead)


def _mark_near(
    order: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    distance: int,
    kinds: NDArray[np.int8],
    instead: NDArray[np.int64],
) -> None:
    """Go through the images by draw and mark those near to an earlier one that is kept."""
    values, first, inverse = np.unique(hashes[order], return_index=True, return_inverse=True)
    same = first[inverse] != np.arange(len(order))  # the very same hash
    kinds[order[same]], instead[order[same]] = NEAR, order[first[inverse]][same]
    pairs = np.sort(first[near_pairs(values, distance)].reshape(-1, 2), axis=1)
    for earlier, later in pairs[np.argsort(pairs[:, 1], kind="stable")].tolist():
        if kinds[order[earlier]] == KEPT and kinds[order[later]] == KEPT:
            kinds[order[later]], instead[order[later]] = NEAR, order[earlier]


def select(
    run: RunFolder,
    source: Source,
    candidates: Candidates,
    *,
    number: int | None = None,
    distance: int = 3,
    nsfw: float = NSFW,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
) -> dict[str, int] | None:
    """Gather the candidates of a source (what is there already stays), then choose among them.

    Returns the funnel: inputs, and how many were left out for which reason. With `part` i of n
    only that part of the candidates is gathered, and None returned; `choose_from` follows when all
    parts are there.
    """
    if number is not None and number < 1:
        raise CaptionError(f"{number} images are to be selected; expected at least 1")
    run.path.mkdir(parents=True, exist_ok=True)
    plan = Plan(source=source, transform=candidates)
    built = build(
        plan, Destination(run.candidates), workers=workers, part=part, max_rejects=1.0, said=print
    )
    if built is None:
        return None
    return choose_from(run, number=number, distance=distance, nsfw=nsfw)


def choose_from(
    run: RunFolder, *, number: int | None = None, distance: int = 3, nsfw: float = NSFW
) -> dict[str, int]:
    """Choose among the candidates that are there; writes selected.jsonl and left_out.jsonl.

    `nsfw`: an image with that score or more is left out; without scores nothing is.
    """
    account = read_object(needed(run.candidates / "build.json", "select"))["counts"]
    facts = []
    for sample in read_images(run, np.arange(account["samples"])):
        facts.append({"id": sample.id, **sample.meta["selected"]})
    choice = choose(
        np.array([fact["draw"] for fact in facts]),
        np.array([fact["image"] for fact in facts]),
        np.array([int(fact["hash"], 16) for fact in facts], np.uint64),
        number=number,
        distance=distance,
        unsafe=np.array([fact.get("nsfw", -1.0) >= nsfw for fact in facts], bool),
    )
    positions = np.flatnonzero(choice.kinds == KEPT)
    order = positions[np.argsort([facts[place]["draw"] for place in positions], kind="stable")]
    others = np.flatnonzero(choice.kinds != KEPT)
    write_lines(run.left_out, (_left_out(facts, choice, place) for place in others.tolist()))
    write_lines(run.selected, ({"position": place, **facts[place]} for place in order.tolist()))
    funnel = {"inputs": account["inputs"]}
    funnel |= {kind: -count for kind, count in account["left_out"].items()}
    for kind in (UNSAFE, SAME, NEAR, BEYOND):
        left_out = int((choice.kinds == kind).sum())
        if left_out:
            funnel[KINDS[kind]] = -left_out
    funnel["selected"] = len(order)
    if sum(value for name, value in funnel.items() if name != "selected") != len(order):
        raise RuntimeError(f"{run.path}: the selection {funnel} does not add up: a fault of ours")
    settings = {"number": number, "distance": distance, "nsfw": nsfw}
    write_object(run.selection, {**settings, "funnel": funnel})
    return funnel


def _left_out(facts: list[Row], choice: Choice, place: int) -> Row:
    row = {"id": facts[place]["id"], "kind": KINDS[choice.kinds[place]]}
    instead = int(choice.instead[place])
    if instead >= 0:
        row["repeats"] = facts[instead]["id"]
    if choice.kinds[place] == UNSAFE:
        row["nsfw"] = facts[place]["nsfw"]
    return row


def read_images(run: RunFolder, positions: NDArray[np.int64]) -> Iterator[Sample]:
    """Read the candidates at these positions, in this order."""
    from pargo_ds.data.shards.folder import open_folder
    from pargo_ds.data.shards.reader import SampleReader

    reader = SampleReader([open_folder(str(run.candidates))])
    for row in reader.rows(np.asarray(positions, np.int64)):
        yield Sample.from_mds(row, str(run.candidates))


def read_selected(run: RunFolder) -> Iterator[Sample]:
    """Read the selected images, lowest draw first: so the first 32 are a fair sample of all."""
    rows = read_lines(needed(run.selected, "select"))
    yield from read_images(run, np.array([row["position"] for row in rows], np.int64))
