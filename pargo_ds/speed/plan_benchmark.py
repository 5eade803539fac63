"""How well packs are filled and ranks balanced: our plan beside next-fit, first-fit and padding; how
evenly steps hold the mix (step_evenness.py); and ten million items.

*Fill* is tokens over what all packs could hold, empty ones included. A *straggler ratio* is the maximum over the mean
across ranks in a micro-step. It is given twice: averaged over the micro-steps, where those with few images count as
much as the others, and as the sum of maxima over the sum of means, which is how much longer ranks take in all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.config import load_config
from pargo_ds.data.packing.packs import Budget
from pargo_ds.data.packing.plan import Items, Plan, Position, make_plan
from pargo_ds.resident import resident_mib
from pargo_ds.speed.plan_mixes import Mix, by_kind, mix_of_kinds, mix_of_run, synthetic_mix
from pargo_ds.speed.step_evenness import evenness_table, first_fit, measure_evenness

RANKS = 8
OPEN_PACKS = 8
"""Packs that first-fit keeps open."""
LARGE_ITEMS = 10_000_000


@dataclass(frozen=True)
class Balance:
    """What one way of packing gives."""

    packs: int
    fill: float
    image_straggler: float
    """Average over the micro-steps of max over mean."""
    image_time: float
    """Sum of the maxima over the sum of the means."""
    token_straggler: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tools/bench_data.py plan`."""
    parser.add_argument(
        "--items",
        type=int,
        default=200_000,
        metavar="N",
        help="of the synthetic mix (default 200000)",
    )
    parser.add_argument(
        "--run", metavar="RUN.yaml", help="the lengths of this run's shards instead of the mix"
    )
    parser.add_argument(
        "--large", action="store_true", help="time and memory for ten million items too (minutes)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")


def run(options: argparse.Namespace) -> int:
    """Print the table, and what `options` ask for besides; 0 when done. Raises ValueError for
    faults in a run file.
    """
    if options.run:
        mix = mix_of_run(load_config(options.run), RANKS)
    else:
        mix = mix_of_kinds(options.items)
    found = compare(mix)
    figures: dict[str, Any] = {"budget": asdict(mix.budget), "ranks": RANKS}
    figures["packings"] = {name: asdict(balance) for name, balance in found.items()}
    print(_table(found, mix.budget))
    figures["steps"] = {}
    for packs in dict.fromkeys([mix.budget.packs_per_step, 3 * RANKS, RANKS]):
        steps = measure_evenness(mix, packs, RANKS)
        print("\n" + evenness_table(steps, packs, RANKS, mix.targets_are))
        figures["steps"][str(packs)] = {name: asdict(evenness) for name, evenness in steps.items()}
    if options.large:
        figures["large"] = measure_large(LARGE_ITEMS)
        for name, value in figures["large"].items():
            print(f"{name.replace('_', ' '):<34} {value:>12,.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def compare(mix: Mix) -> dict[str, Balance]:
    """Return fill and balance over RANKS ranks of each way of packing."""
    (order,), budget = mix.order_of(1), mix.budget
    tokens, images = mix.lookup(order)
    simple = {
        "padding (a conversation a row)": range(len(order)),
        "next-fit": first_fit(tokens, images, budget, 1),
        f"first-fit, {OPEN_PACKS} packs open": first_fit(tokens, images, budget, OPEN_PACKS),
    }
    found = {}
    for name, packs in simple.items():
        found[name] = _balance(tokens, images, np.asarray(packs), budget)
    for nodes in (1, RANKS):
        plan = make_plan(
            mix.order_of(nodes),
            mix.lookup,
            budget,
            seed=0,
            epoch=0,
            stream_starts=mix.stream_starts,
        )
        ending = "s" if nodes > 1 else ""
        found[f"ours, {nodes} canonical node{ending}"] = _balance_of_plan(plan, nodes)
    return found


def _balance(
    tokens: NDArray[np.int64], images: NDArray[np.int64], pack_of: NDArray[np.int64], budget: Budget
) -> Balance:
    """Of packs that ranks take one after another, the last micro-step completed with empty ones."""
    packs = -(-(int(pack_of.max()) + 1) // RANKS) * RANKS
    tokens_of = np.bincount(pack_of, tokens, packs).reshape(-1, RANKS)
    images_of = np.bincount(pack_of, images, packs).reshape(-1, RANKS)
    return _summed(tokens_of, images_of, budget)


def _balance_of_plan(plan: Plan, nodes: int) -> Balance:
    by_micro_step = []
    for step, _ in plan.steps():
        packs_of_ranks = [step.packs_of(rank, RANKS, nodes) for rank in range(RANKS)]
        for packs in zip(*packs_of_ranks, strict=True):  # those that ranks compute at once
            by_micro_step.append([_sums_of(plan, pack) for pack in packs])
    sums = np.array(by_micro_step)  # (micro-steps, ranks, 2)
    return _summed(sums[..., 0], sums[..., 1], plan.budget)


def _sums_of(plan: Plan, pack: Items) -> tuple[int, int]:
    """Tokens and images of a pack."""
    tokens, images = plan.lookup(pack)
    return tokens.sum(), images.sum()


def _summed(tokens: NDArray[Any], images: NDArray[Any], budget: Budget) -> Balance:
    """`tokens` and `images` are (micro-steps, ranks)."""
    return Balance(
        packs=tokens.size,
        fill=float(tokens.sum() / (tokens.size * budget.tokens_per_pack)),
        image_straggler=_averaged(images),
        image_time=float(images.max(axis=1).sum() / max(1e-9, images.mean(axis=1).sum())),
        token_straggler=_averaged(tokens),
    )


def _averaged(loads: NDArray[Any]) -> float:
    """Max over mean of each micro-step in which any rank has something, averaged."""
    busy = loads[loads.any(axis=1)]
    if not len(busy):
        return 1.0
    return float((busy.max(axis=1) / busy.mean(axis=1)).mean())


def _table(found: dict[str, Balance], budget: Budget) -> str:
    lines = [
        f"packs of {budget.tokens_per_pack} tokens and {budget.images_per_pack} images, {budget.packs_per_step} a "
        f"step, {RANKS} ranks",
        f"{'':<32}{'packs':>9}{'fill':>9}{'images':>11}{'in time':>9}{'tokens':>9}   (max / mean across ranks)",
    ]
    for name, one in found.items():
        stragglers = (
            f"{one.image_straggler:>11.3f}{one.image_time:>9.3f}{one.token_straggler:>9.3f}"
        )
        lines.append(f"{name:<32}{one.packs:>9}{one.fill:>9.1%}{stragglers}")
    return "\n".join(lines)


def measure_large(items: int) -> dict[str, float]:
    """Return the seconds and memory of planning `items` items of the mix in four streams, measured
    in a process of its own.

    "Resume" is what a restarted run does: order and cuts, then the first step from a position in
    mid-epoch, which must be the step that follows there in the whole epoch.
    """
    with tempfile.TemporaryDirectory(prefix="pargo_ds_plan_") as folder:
        text_tokens, images, counts = by_kind(items)
        np.save(Path(folder) / "text_tokens.npy", text_tokens)
        np.save(Path(folder) / "images.npy", images)
        np.save(Path(folder) / "counts.npy", counts)
        script = "import sys; from pargo_ds.speed.plan_benchmark import _large; _large(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def _large(folder: str) -> None:
    import streaming.base.shuffle  # noqa: F401  (its import takes seconds and memory that are not the plan's)

    before = resident_mib("VmRSS")
    files = [Path(folder) / f"{name}.npy" for name in ("text_tokens", "images", "counts")]
    text_tokens, images, counts = (np.load(file, mmap_mode="r") for file in files)
    started, cpu_started = time.perf_counter(), time.process_time()
    mix = synthetic_mix(text_tokens, images, counts.tolist())
    orders = mix.order_of(1)
    ordered = time.perf_counter()
    plan = make_plan(
        orders, mix.lookup, mix.budget, seed=0, epoch=0, stream_starts=mix.stream_starts
    )
    cut = time.perf_counter()
    guessed = Position(
        plan.num_windows // 2, plan.num_windows // 2 * 512, plan.num_windows // 2 * 512 // 64
    )
    next(
        plan.steps(guessed)
    )  # any number of rows before costs the same; the true one is found below
    found = time.perf_counter()
    peak = resident_mib("VmHWM")
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
    """Pack everything; and compare the step after a true position in mid-epoch with the one that a
    resume finds.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    planned = tqdm(plan.steps(), desc="planning an epoch", unit="step", disable=None)
    steps = [position for _, position in planned]
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
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
        "whole_epoch_cpu_s": cpu_s,
        "step_at_true_position_s": resume_s,
        "memory_after_whole_epoch_mb": resident_mib("VmHWM"),
    }
