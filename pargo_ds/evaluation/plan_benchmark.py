"""How well packs are filled and ranks balanced: our plan beside next-fit, first-fit and padding; and ten million items.

The synthetic mix is one of instruction tuning at 288 + 16 visual tokens per picture. Text lengths are log-normal (sigma
1.1) around a median per kind, from 8 tokens to what a pack of 4,096 leaves:

    share   kind                 pictures   median text tokens
    55 %    short questions      1          50
    15 %    long captions        1          250
    25 %    text only            0          400
     5 %    several pictures     2 ... 8    200

*Fill* is tokens over what all packs could hold, empty ones included. A *straggler ratio* is the maximum over the mean
across ranks in a micro-step. It is given twice: averaged over the micro-steps, where those with few pictures count as
much as the others, and as the sum of maxima over the sum of means, which is how much longer ranks take in all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.config import RunConfig, load_config
from pargo_ds.data.plan import Budget, Items, Lookup, Plan, Position, make_plan

VISUAL_TOKENS = 304
SHARD_ITEMS = 500
RANKS = 8
OPEN_PACKS = 8
"""Packs that first-fit keeps open."""
BUDGET = Budget(tokens_per_pack=4096, pictures_per_pack=16, packs_per_step=64)
LARGE_ITEMS = 10_000_000


@dataclass(frozen=True)
class Balance:
    """What one way of packing gives."""

    packs: int
    fill: float
    picture_straggler: float
    """Average over the micro-steps of max over mean."""
    picture_time: float
    """Sum of the maxima over the sum of the means."""
    token_straggler: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tools/bench_data.py plan`."""
    parser.add_argument("--items", type=int, default=200_000, metavar="N", help="of the synthetic mix (default 200000)")
    parser.add_argument("--run", metavar="RUN.yaml", help="the lengths of this run's shards instead of the mix")
    parser.add_argument("--large", action="store_true", help="time and memory for ten million items too (minutes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")


def run(options: argparse.Namespace) -> int:
    """Print the table, and what `options` ask for besides; 0 when done. Raises ValueError for faults in a run file."""
    if options.run:
        lookup, order_of, budget = _of_run(load_config(options.run))
    else:
        lookup, order_of, budget = _of_mix(*realistic_mix(options.items))
    found = compare(lookup, order_of, budget)
    figures: dict[str, Any] = {"budget": asdict(budget), "ranks": RANKS}
    figures["packings"] = {name: asdict(balance) for name, balance in found.items()}
    print(_table(found, budget))
    if options.large:
        figures["large"] = measure_large(LARGE_ITEMS)
        print("\n".join(f"{name.replace('_', ' '):<34} {value:>12,.2f}" for name, value in figures["large"].items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def realistic_mix(items: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Text tokens and pictures (items,) of the mix in the table above; the same numbers at every call."""
    rng = np.random.default_rng(0)
    kind = rng.choice(4, items, p=[0.55, 0.15, 0.25, 0.05])
    pictures = np.choose(kind, [1, 1, 0, rng.integers(2, 9, items)]).astype(np.uint16)
    median = np.choose(kind, [50, 250, 400, 200])
    text = np.clip(rng.lognormal(np.log(median), 1.1), 8, BUDGET.tokens_per_pack - VISUAL_TOKENS * pictures)
    return text.astype(np.uint32), pictures


def compare(lookup: Lookup, order_of: Callable[[int], list[Items]], budget: Budget) -> dict[str, Balance]:
    """Fill and balance over RANKS ranks of each way of packing; `order_of(canonical nodes)` gives an epoch's order."""
    (order,) = order_of(1)
    tokens, pictures = lookup(order)
    simple = {
        "padding (a conversation a row)": range(len(order)),
        "next-fit": _fitted(tokens, pictures, budget, 1),
        f"first-fit, {OPEN_PACKS} packs open": _fitted(tokens, pictures, budget, OPEN_PACKS),
    }
    found = {name: _balance(tokens, pictures, np.asarray(packs), budget) for name, packs in simple.items()}
    for nodes in (1, RANKS):
        plan = make_plan(order_of(nodes), lookup, budget, seed=0, epoch=0)
        found[f"ours, {nodes} canonical node{'s' if nodes > 1 else ''}"] = _balance_of_plan(plan, nodes)
    return found


def _fitted(
    tokens: NDArray[np.int64], pictures: NDArray[np.int64], budget: Budget, most_open: int
) -> NDArray[np.int64]:
    """(items,) the pack of each item, in the order of the items: the first of the open packs with room for it, and if
    there is none, a new one for the oldest."""
    pack_of = np.zeros(len(tokens), np.int64)
    open_packs: list[list[int]] = []  # number, free tokens, free pictures; the oldest first
    packs = 0
    for item, (need, shown) in enumerate(zip(tokens.tolist(), pictures.tolist(), strict=True)):
        pack = next((one for one in open_packs if one[1] >= need and one[2] >= shown), None)
        if pack is None:
            pack = [packs, budget.tokens_per_pack, budget.pictures_per_pack]
            packs += 1
            open_packs = [*open_packs[-(most_open - 1) :], pack] if most_open > 1 else [pack]
        pack[1] -= need
        pack[2] -= shown
        pack_of[item] = pack[0]
    return pack_of


def _balance(
    tokens: NDArray[np.int64], pictures: NDArray[np.int64], pack_of: NDArray[np.int64], budget: Budget
) -> Balance:
    """Of packs that ranks take one after another, the last micro-step completed with empty ones."""
    packs = -(-(int(pack_of.max()) + 1) // RANKS) * RANKS
    per_pack = (np.bincount(pack_of, weights, packs).reshape(-1, RANKS) for weights in (tokens, pictures))
    return _summed(*per_pack, budget)


def _balance_of_plan(plan: Plan, nodes: int) -> Balance:
    per_rank: list[list[list[Items]]] = [
        [step.packs_of(rank, RANKS, nodes) for rank in range(RANKS)] for step, _ in plan.steps()
    ]
    sums = np.array(
        [[[[kind.sum() for kind in plan.lookup(pack)] for pack in packs] for packs in step] for step in per_rank]
    )  # (steps, ranks, micro-steps, 2)
    by_micro_step = sums.swapaxes(1, 2).reshape(-1, RANKS, 2)
    return _summed(by_micro_step[..., 0], by_micro_step[..., 1], plan.budget)


def _summed(tokens: NDArray[Any], pictures: NDArray[Any], budget: Budget) -> Balance:
    """`tokens` and `pictures` are (micro-steps, ranks)."""
    return Balance(
        packs=tokens.size,
        fill=float(tokens.sum() / (tokens.size * budget.tokens_per_pack)),
        picture_straggler=_averaged(pictures),
        picture_time=float(pictures.max(axis=1).sum() / max(1e-9, pictures.mean(axis=1).sum())),
        token_straggler=_averaged(tokens),
    )


def _averaged(loads: NDArray[Any]) -> float:
    """Max over mean of each micro-step in which any rank has something, averaged."""
    busy = loads[loads.any(axis=1)]
    return float((busy.max(axis=1) / busy.mean(axis=1)).mean()) if len(busy) else 1.0


def _table(found: dict[str, Balance], budget: Budget) -> str:
    lines = [
        f"packs of {budget.tokens_per_pack} tokens and {budget.pictures_per_pack} pictures, {budget.packs_per_step} a "
        f"step, {RANKS} ranks",
        f"{'':<32}{'packs':>9}{'fill':>9}{'pictures':>11}{'in time':>9}{'tokens':>9}   (max / mean across ranks)",
    ]
    for name, one in found.items():
        stragglers = f"{one.picture_straggler:>11.3f}{one.picture_time:>9.3f}{one.token_straggler:>9.3f}"
        lines.append(f"{name:<32}{one.packs:>9}{one.fill:>9.1%}{stragglers}")
    return "\n".join(lines)


def _of_mix(
    text_tokens: NDArray[np.uint32], pictures: NDArray[np.uint16]
) -> tuple[Lookup, Callable[[int], list[Items]], Budget]:
    from pargo_ds.data.order import epoch_order

    def lookup(items: Items) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shown = pictures[items].astype(np.int64)
        return text_tokens[items] + shown * VISUAL_TOKENS, shown

    shards = np.diff([*range(0, len(pictures), SHARD_ITEMS), len(pictures)])

    def order_of(nodes: int) -> list[Items]:
        return epoch_order([shards], [Fraction(1)], seed=0, epoch=0, canonical_nodes=nodes)

    return lookup, order_of, BUDGET


def _of_run(run: RunConfig) -> tuple[Lookup, Callable[[int], list[Items]], Budget]:
    """The mixture of a run file, as far as its lengths have been measured; steps become a multiple of RANKS packs."""
    from pargo_ds.data.lengths import Lengths, find_side_car, index_hash, within_budget
    from pargo_ds.data.mixture import Mixture, Stream
    from pargo_ds.data.stores import open_folder

    streams = []
    for section in run.data.train:
        folder, texts = open_folder(section.path, run.data.cache, run.name), run.data.of_stream(section)
        places = (folder.local / "lengths", run.run_dir / "cache")
        columns = next(filter(None, (find_side_car(place, index_hash(folder), texts) for place in places)), None)
        if columns is None:
            raise ValueError(
                f"{section.path} has no lengths for its texts in {places[0]} or {places[1]}; write them with: "
                "python tools/build_shards.py lengths RUN.yaml"
            )
        measured = Lengths(columns=columns, visual_tokens=run.projector.visual_tokens)
        lengths, skipped = within_budget(measured, run.batch, texts, folder)
        streams.append(Stream(section=section, folder=folder, data=texts, lengths=lengths, skipped=skipped))

    def mixture(nodes: int) -> Mixture:
        data = run.data.model_copy(update={"canonical_nodes": nodes})
        return Mixture(streams, data, run.batch, run.seed)

    one = mixture(1)
    budget = replace(one.budget, packs_per_step=-(-run.batch.packs_per_step // RANKS) * RANKS)
    return one.counts, lambda nodes: mixture(nodes).order(0), budget


def measure_large(items: int) -> dict[str, float]:
    """Seconds and memory of planning `items` items of the mix, measured in a process of its own.

    "Resume" is what a restarted run does: order and cuts, then the first step from a position in mid-epoch, which must
    be the step that follows there in the whole epoch.
    """
    with tempfile.TemporaryDirectory(prefix="pargo_ds_plan_") as folder:
        for name, column in zip(("text_tokens", "pictures"), realistic_mix(items), strict=True):
            np.save(Path(folder) / f"{name}.npy", column)
        script = "import sys; from pargo_ds.evaluation.plan_benchmark import _large; _large(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _large(folder: str) -> None:
    import streaming.base.shuffle  # noqa: F401  (its import takes seconds and memory that are not the plan's)

    before = _memory_mb("VmRSS")
    columns = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("text_tokens", "pictures"))
    started, cpu_started = time.perf_counter(), time.process_time()
    lookup, order_of, budget = _of_mix(*columns)
    orders = order_of(1)
    ordered = time.perf_counter()
    plan = make_plan(orders, lookup, budget, seed=0, epoch=0)
    cut = time.perf_counter()
    guessed = Position(plan.num_windows // 2, plan.num_windows // 2 * 512, plan.num_windows // 2 * 512 // 64)
    next(plan.steps(guessed))  # any number of rows before costs the same; the true one is found below
    found = time.perf_counter()
    peak = _memory_mb("VmHWM")
    figures = {
        "items": float(sum(map(len, orders))),
        "order_s": ordered - started,
        "cuts_s": cut - ordered,
        "first_step_s": found - cut,
        "resume_in_mid_epoch_s": found - started,
        "resume_in_mid_epoch_cpu_s": time.process_time() - cpu_started,
        "memory_before_mb": before,
        "memory_of_planning_mb": peak - before,
        "memory_at_peak_mb": peak,
    }
    print(json.dumps(figures | _whole_epoch(plan)))


def _whole_epoch(plan: Plan) -> dict[str, float]:
    """Pack everything; and compare the step after a true position in mid-epoch with the one that a resume finds."""
    started = time.perf_counter()
    steps = [position for _, position in tqdm(plan.steps(), desc="planning an epoch", unit="step", disable=None)]
    seconds = time.perf_counter() - started
    (_, position), (expected, _) = islice(plan.steps(steps[len(steps) // 2]), 2)
    again = time.perf_counter()
    resumed, _ = next(plan.steps(position))
    resume_s = time.perf_counter() - again
    same = all(map(np.array_equal, resumed.packs_of(0, 1), expected.packs_of(0, 1)))
    if not same:
        raise RuntimeError(f"the step after {position} is another one when it is resumed there")
    return {
        "steps": float(len(steps)),
        "whole_epoch_s": seconds,
        "step_at_true_position_s": resume_s,
        "memory_after_whole_epoch_mb": _memory_mb("VmHWM"),
    }


def _memory_mb(line: str) -> float:
    """VmRSS (now) or VmHWM (at most so far) of this process; ru_maxrss would begin with the parent's maximum."""
    fields = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    return int(fields[line].split()[0]) / 1024
