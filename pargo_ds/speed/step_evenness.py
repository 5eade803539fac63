"""How evenly steps hold a mix: our plan beside random draws, and beside steps of like packs.

Two draws: *samples at random* puts the epoch's samples into packs as they come in a random order
(first fit), so a step is a random draw of samples; *our packs at random* draws the plan's own packs
into steps. *Like packs a step* is what plans were before version 3: neighbours by image count made
a step. The last step of an epoch, completed with empty packs, does not count.

The *straggler* is the largest over the mean image count of the packs that ranks compute at the same
time, as the sum of maxima over the sum of means: how much longer ranks would take if images were
all that costs. Tokens are alike in all packs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pargo_ds.data.packing.packs import Budget
from pargo_ds.data.packing.plan import Items, Plan, Row, Step, make_plan
from pargo_ds.speed.plan_mixes import Mix

OPEN_PACKS = 8
"""Packs that the random draw of samples keeps open."""


@dataclass(frozen=True)
class Evenness:
    """How steps differ from one another; spreads are standard deviations over means."""

    samples_spread: float
    targets_spread: float
    images_spread: float
    stream_chi2: float
    """Chi-square of a step's samples against the mixture's shares, over its degrees of freedom:
    1 for a random draw of samples, 0 when all steps hold the shares exactly.
    """
    samples_p10: float
    samples_p90: float
    straggler: float
    fill: float
    plan_cpu_s: float
    """Order, cuts and all windows; 0 where nothing is planned."""


class LikePacksPlan(Plan):
    """Plans before version 3: a step is of neighbours by image count, steps in random order."""

    def _arranged(
        self, rows: list[Row], rows_before: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        ranked = np.arange(len(rows))
        head = min(-rows_before % self.rows_per_step, len(rows))
        tail = (len(rows) - head) % self.rows_per_step
        begin = (len(rows) - head - tail) // 2
        ends = ranked[begin : begin + head + tail]
        steps = np.concatenate([ranked[:begin], ranked[begin + head + tail :]])
        mixed = rng.permutation(steps.reshape(-1, self.rows_per_step)).reshape(-1)
        return np.concatenate([ends[:head], mixed, ends[head:]])


def measure_evenness(mix: Mix, packs_per_step: int, ranks: int) -> dict[str, Evenness]:
    """Measure each way of making steps of `packs_per_step` packs for `ranks` ranks, a multiple."""
    budget = replace(mix.budget, packs_per_step=packs_per_step)
    ours, cpu_s = _planned(mix, budget, 1)
    rng = np.random.default_rng(1)
    packs = [pack for pack in chain.from_iterable(map(_packs_of, ours)) if len(pack)]
    shuffled = [packs[number] for number in rng.permutation(len(packs))]
    found = {
        "samples at random": _evenness(mix, budget, _drawn(mix, budget, rng), ranks, 1, 0),
        "our packs at random": _evenness(mix, budget, _steps(mix, budget, shuffled), ranks, 1, 0),
    }
    like, like_s = _planned(mix, budget, 1, LikePacksPlan)
    found["like packs a step"] = _evenness(mix, budget, like, ranks, 1, like_s)
    found["ours, 1 canonical node"] = _evenness(mix, budget, ours, ranks, 1, cpu_s)
    steps, cpu_s = _planned(mix, budget, ranks)
    found[f"ours, {ranks} canonical nodes"] = _evenness(mix, budget, steps, ranks, ranks, cpu_s)
    return found


def _planned(
    mix: Mix, budget: Budget, nodes: int, kind: Callable[..., Plan] = Plan
) -> tuple[list[Step], float]:
    """All steps of an epoch, and the CPU seconds that planning takes."""
    import streaming.base.shuffle  # noqa: F401  (its import takes seconds that are not the plan's)

    started = time.process_time()
    plan = make_plan(
        mix.order_of(nodes), mix.lookup, budget, seed=0, epoch=0, stream_starts=mix.stream_starts
    )
    steps = [step for step, _ in kind(**vars(plan)).steps()]
    return steps, time.process_time() - started


def _drawn(mix: Mix, budget: Budget, rng: np.random.Generator) -> list[Step]:
    items = rng.permutation(np.concatenate(mix.order_of(1)))
    pack_of = first_fit(*mix.lookup(items), budget, OPEN_PACKS)
    by_pack = np.argsort(pack_of, kind="stable")
    return _steps(
        mix, budget, np.split(items[by_pack], np.flatnonzero(np.diff(pack_of[by_pack])) + 1)
    )


def first_fit(
    tokens: NDArray[np.int64], images: NDArray[np.int64], budget: Budget, most_open: int
) -> NDArray[np.int64]:
    """Return (items,) the pack of each item, in the order of the items: the first of the open packs
    with room for it, and if there is none, a new one for the oldest.
    """
    pack_of = np.zeros(len(tokens), np.int64)
    open_packs: list[list[int]] = []  # number, free tokens, free images; the oldest first
    packs = 0
    for item, (need, shown) in enumerate(zip(tokens.tolist(), images.tolist(), strict=True)):
        pack = next((one for one in open_packs if one[1] >= need and one[2] >= shown), None)
        if pack is None:
            pack = [packs, budget.tokens_per_pack, budget.images_per_pack]
            packs += 1
            open_packs = [*open_packs, pack][-most_open:]
        pack[1] -= need
        pack[2] -= shown
        pack_of[item] = pack[0]
    return pack_of


def _steps(mix: Mix, budget: Budget, packs: list[Items]) -> list[Step]:
    """Packs one after another in steps of one canonical node, the last completed with empty ones."""
    completed = packs + [packs[0][:0]] * (-len(packs) % budget.packs_per_step)
    rows = []
    for pack in completed:
        _, images = mix.lookup(pack)
        rows.append(Row([pack], [int(images.sum())]))
    begins = range(0, len(rows), budget.packs_per_step)
    return [Step(rows[begin : begin + budget.packs_per_step]) for begin in begins]


def _packs_of(step: Step) -> list[Items]:
    """The packs of a step, row by row."""
    return list(chain.from_iterable(row.packs for row in step.rows))


def _evenness(
    mix: Mix, budget: Budget, steps: list[Step], ranks: int, nodes: int, plan_cpu_s: float
) -> Evenness:
    whole = steps[:-1] or steps
    items = [np.concatenate(_packs_of(step)) for step in whole]
    samples = np.array([len(one) for one in items])
    images = np.array([mix.lookup(one)[1].sum() for one in items])
    at_once = np.array([_images_at_once(mix, step, ranks, nodes) for step in whole])
    tokens = sum(int(mix.lookup(one)[0].sum()) for one in items)
    return Evenness(
        samples_spread=_spread(samples),
        targets_spread=_spread(np.array([mix.targets(one).sum() for one in items])),
        images_spread=_spread(images),
        stream_chi2=_chi_square(mix, items),
        samples_p10=float(np.percentile(samples, 10)),
        samples_p90=float(np.percentile(samples, 90)),
        straggler=float(at_once.max(axis=2).sum() / max(1e-9, at_once.mean(axis=2).sum())),
        fill=tokens / max(1, len(whole) * budget.packs_per_step * budget.tokens_per_pack),
        plan_cpu_s=plan_cpu_s,
    )


def _images_at_once(mix: Mix, step: Step, ranks: int, nodes: int) -> NDArray[np.int64]:
    """(micro-steps, ranks) images that each rank encodes at the same time."""
    found = []
    for rank in range(ranks):
        packs = step.packs_of(rank, ranks, nodes)
        found.append([mix.lookup(pack)[1].sum() for pack in packs])
    return np.array(found).T


def _spread(values: NDArray[np.number]) -> float:
    return float(values.std() / max(1e-9, values.mean()))


def _counts_by_stream(mix: Mix, items: Items) -> NDArray[np.int64]:
    """(streams,) how many of the items each stream has."""
    stream_of = np.searchsorted(mix.stream_starts, items, side="right") - 1
    return np.bincount(stream_of, minlength=len(mix.stream_starts))


def _chi_square(mix: Mix, items: list[Items]) -> float:
    streams = len(mix.stream_starts)
    if streams < 2:
        return 0.0
    found = np.array([_counts_by_stream(mix, one) for one in items])
    every = np.concatenate(mix.order_of(1))
    expected = found.sum(axis=1, keepdims=True) * _counts_by_stream(mix, every) / len(every)
    return float(((found - expected) ** 2 / expected).sum(axis=1).mean() / (streams - 1))


def evenness_table(
    found: dict[str, Evenness], packs_per_step: int, ranks: int, targets_are: str
) -> str:
    """Return one line for each way of making steps."""
    lines = [
        f"steps of {packs_per_step} packs on {ranks} ranks: standard deviation over mean of a step's",
        f"{'':<26}{'samples':>9}{targets_are:>13}{'images':>9}{'chi2/dof':>10}{'samples 10-90 %':>17}"
        f"{'straggler':>11}{'fill':>8}{'plan s':>8}",
    ]
    for name, one in found.items():
        between = f"{one.samples_p10:.0f} - {one.samples_p90:.0f}"
        lines.append(
            f"{name:<26}{one.samples_spread:>9.3f}{one.targets_spread:>13.3f}{one.images_spread:>9.3f}"
            f"{one.stream_chi2:>10.2f}{between:>17}{one.straggler:>11.3f}{one.fill:>8.1%}"
            f"{one.plan_cpu_s:>8.2f}"
        )
    return "\n".join(lines)
