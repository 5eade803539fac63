"""What plans are measured on: a synthetic mix, or the lengths of a run's shards.

The synthetic mix is one of instruction tuning at 288 + 16 visual tokens per image. Text lengths are log-normal (sigma
1.1) around a median per kind, from 8 tokens to what a pack of 4,096 leaves:

    share   kind                 images   median text tokens
    55 %    short questions      1          50
    15 %    long captions        1          250
    25 %    text only            0          400
     5 %    several images     2 ... 8    200

For the evenness of steps each kind is a stream, and 20, 80, 50 and 50 % of its text tokens are targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pargo_ds.config import RunConfig
from pargo_ds.data.packing.order import epoch_order
from pargo_ds.data.packing.packs import Budget
from pargo_ds.data.packing.plan import Items, Lookup

VISUAL_TOKENS = 304
SHARD_ITEMS = 500
BUDGET = Budget(tokens_per_pack=4096, images_per_pack=16, packs_per_step=64)
KINDS = [0.55, 0.15, 0.25, 0.05]
TARGETS = np.array([0.2, 0.8, 0.5, 0.5])
"""(kinds,) share of the text tokens."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Items to plan, by their numbers."""

    lookup: Lookup
    order_of: Callable[[int], list[Items]]
    """Canonical nodes -> an epoch's order on each."""
    budget: Budget
    stream_starts: list[int]
    """(streams,) number of each stream's first item."""
    targets: Callable[[Items], NDArray[np.number]]
    """Items -> what of them is learned."""
    targets_are: str = "targets"


def realistic_mix(items: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Return the text tokens and images (items,) of the mix in the table above; the same numbers at
    every call.
    """
    rng = np.random.default_rng(0)
    kind = rng.choice(4, items, p=KINDS)
    images = np.choose(kind, [1, 1, 0, rng.integers(2, 9, items)]).astype(np.uint16)
    median = np.choose(kind, [50, 250, 400, 200])
    text = np.clip(
        rng.lognormal(np.log(median), 1.1), 8, BUDGET.tokens_per_pack - VISUAL_TOKENS * images
    )
    return text.astype(np.uint32), images


def by_kind(items: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16], list[int]]:
    """Return the same mix kind after kind, and how many items each kind has."""
    kinds = np.random.default_rng(0).choice(4, items, p=KINDS)  # the first draw of realistic_mix
    order = np.argsort(kinds, kind="stable")
    text_tokens, images = realistic_mix(items)
    return text_tokens[order], images[order], np.bincount(kinds, minlength=4).tolist()


def mix_of_kinds(items: int) -> Mix:
    """Return the mix with its four kinds as four streams."""
    return synthetic_mix(*by_kind(items))


def synthetic_mix(
    text_tokens: NDArray[np.uint32], images: NDArray[np.uint16], counts: list[int]
) -> Mix:
    """Return the items of these lengths, in streams of `counts` items."""
    shards = [np.diff([*range(0, count, SHARD_ITEMS), count]) for count in counts]
    starts = np.cumsum([0, *counts[:-1]])

    def lookup(items: Items) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shown = images[items].astype(np.int64)
        return text_tokens[items] + shown * VISUAL_TOKENS, shown

    def order_of(nodes: int) -> list[Items]:
        return epoch_order(
            shards, [Fraction(1)] * len(counts), seed=0, epoch=0, canonical_nodes=nodes
        )

    def targets(items: Items) -> NDArray[np.float64]:
        return text_tokens[items] * TARGETS[np.searchsorted(starts, items, side="right") - 1]

    return Mix(
        lookup=lookup,
        order_of=order_of,
        budget=BUDGET,
        stream_starts=starts.tolist(),
        targets=targets,
    )


def mix_of_run(run: RunConfig, ranks: int) -> Mix:
    """Return the mixture of a run file, as far as its lengths have been measured; steps become a
    multiple of `ranks` packs.
    """
    from pargo_ds.assembly.configs import visual_tokens
    from pargo_ds.data.packing.lengths import Lengths, find_side_car, within_budget
    from pargo_ds.data.packing.mixture import Mixture, Stream
    from pargo_ds.data.shards.folder import open_folder

    streams = []
    for section in run.data.train:
        folder, texts = (
            open_folder(section.path, run.data.cache, run.name),
            run.data.of_stream(section),
        )
        places = (folder.local / "lengths", run.run_dir / "cache")
        columns = next(
            filter(None, (find_side_car(place, folder.index_sha256, texts) for place in places)),
            None,
        )
        if columns is None:
            raise ValueError(
                f"{section.path} has no lengths for its texts in {places[0]} or {places[1]}; write them with: "
                "python tools/build_shards.py lengths RUN.yaml"
            )
        measured = Lengths(columns=columns, visual_tokens=visual_tokens(run))
        lengths, skipped = within_budget(measured, run.batch, texts, folder)
        streams.append(
            Stream(section=section, folder=folder, data=texts, lengths=lengths, skipped=skipped)
        )

    def mixture(nodes: int) -> Mixture:
        data = run.data.model_copy(update={"canonical_nodes": nodes})
        return Mixture(streams, data, run.batch, run.seed)

    one = mixture(1)
    budget = replace(one.budget, packs_per_step=-(-run.batch.packs_per_step // ranks) * ranks)

    def text_tokens(items: Items) -> NDArray[np.int64]:
        tokens, images = one.counts(items)
        return tokens - images * visual_tokens(run)

    return Mix(
        lookup=one.counts,
        order_of=lambda nodes: mixture(nodes).order(0),
        budget=budget,
        stream_starts=one.offsets[:-1].tolist(),
        targets=text_tokens,
        targets_are="text tokens",
    )
