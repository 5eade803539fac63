"""What was predicted of a run, kept in its folder, and how far it was off."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from pargo_ds.errors import ConfigError
from pargo_ds.files.whole_file import write_whole
from pargo_ds.planning.load import Load
from pargo_ds.planning.memory import OF_DEVICE
from pargo_ds.planning.plan import GIB, Cluster, Strategy
from pargo_ds.planning.subject import Subject

PLAN = "plan.json"
SETTLED = 5
"""Steps that are left out of the measured figures: kernels are chosen and caches filled in them."""


@dataclass(frozen=True)
class Prediction:
    """The figures of a plan that metrics.jsonl can be held beside."""

    ranks: int
    gpu: str
    network_gbits: float
    zero_stage: int
    checkpointed_layers: int
    step_s: float
    tokens: float
    """Of a step, over all ranks."""
    images: float
    memory_gib: float
    """Of a rank, as torch allocates it: without fragmentation, CUDA and NCCL."""
    mfu: float


def prediction(subject: Subject, cluster: Cluster, load: Load, one: Strategy) -> Prediction:
    """Of a run whose packs are all as `load`."""
    packs = subject.run.batch.packs_per_step
    allocated = sum(value for part, value in one.memory.items() if part not in OF_DEVICE)
    return Prediction(
        ranks=cluster.ranks,
        gpu=cluster.gpu.name,
        network_gbits=cluster.network.gbs * 8,
        zero_stage=one.stage,
        checkpointed_layers=one.again,
        step_s=one.time.seconds,
        tokens=float(packs * load.tokens),
        images=float(packs * load.images),
        memory_gib=allocated / GIB,
        mfu=one.utilization()[0],
    )


def save(run_dir: Path, predicted: Prediction) -> None:
    """Write plan.json, whole or not at all."""
    write_whole(run_dir / PLAN, json.dumps(asdict(predicted), indent=2) + "\n")


def residual(run_dir: Path, ranks: int | None = None) -> list[str]:
    """A line for each figure, predicted against measured: medians over the run's steps, memory its
    peak. `ranks`: of the run, where they are known.

    Raises ConfigError where the folder holds no plan or no measured step, or one for other ranks.
    """
    path = run_dir / PLAN
    if not path.is_file():
        raise ConfigError(f"{path} is missing: nothing was predicted (tools/plan_run.py --save)")
    try:
        predicted = Prediction(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is no plan of this version ({error}); write it again with tools/plan_run.py --save"
        ) from error
    if ranks is not None and ranks != predicted.ranks:
        raise ConfigError(f"{path} is for {predicted.ranks} ranks, the run had {ranks}")
    rows = _settled(run_dir / "metrics.jsonl")
    lines = [
        f"predicted for {predicted.ranks} x {predicted.gpu}, ZeRO-{predicted.zero_stage}, "
        f"{predicted.checkpointed_layers} layers checkpointed; measured in {len(rows)} steps:"
    ]
    for figure, unit in (("step_s", "s"), ("tokens", ""), ("images", "")):
        measured = statistics.median(row[figure] for row in rows)
        lines.append(_line(f"{figure} {unit}".strip(), getattr(predicted, figure), measured))
    most = max(row["memory_gib"] for row in rows)
    return [*lines, _line("memory_gib", predicted.memory_gib, most)]


def _settled(path: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without those of the first steps."""
    if not path.is_file():
        raise ConfigError(f"{path} is missing: the run has measured nothing yet")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    settled = [row for row in rows if row["step"] > SETTLED]
    if not settled:
        raise ConfigError(f"{path} has no step after the first {SETTLED}; nothing can be compared")
    return settled


def _line(name: str, predicted: float, measured: float) -> str:
    off = f"{measured / predicted - 1:+.0%}" if predicted else "nothing was predicted"
    return f"  {name}: predicted {predicted:.4g}, measured {measured:.4g} ({off})"
