"""Strong and weak scaling of a run over 1 to 4,096 GPUs, as a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from pargo_ds.config import RunConfig, parse_config
from pargo_ds.errors import ConfigError
from pargo_ds.evaluation.figures import to_png
from pargo_ds.planning.hardware import Gpu, Network
from pargo_ds.planning.host import HostTimes
from pargo_ds.planning.load import typical_load
from pargo_ds.planning.plan import Cluster, Strategy, strategies
from pargo_ds.planning.subject import subject_of, with_packs

GPU_COUNTS = tuple(2**n for n in range(13))
STRONG_PACKS = 512
"""Packs of a step in strong scaling, whatever the number of GPUs."""
WEAK_PACKS = 2
"""Packs of a step on each GPU in weak scaling."""
SIZES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
           "num_attention_heads": 32, "num_key_value_heads": 4},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 40},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8},
}  # fmt: skip
"""Shapes of TinyLlama and Llama 2."""


@dataclass(frozen=True)
class Row:
    """The best strategy of a run on so many GPUs."""

    run: str
    size: str
    """Of the LLM; empty: the run's own."""
    kind: str
    """strong or weak."""
    gpus: int
    best: Strategy
    tokens_per_s: float


def variants(runs: Sequence[RunConfig], sizes: Sequence[str]) -> dict[tuple[str, str], RunConfig]:
    """Each run by its name and the size of its LLM: as it is (""), or in each of `sizes`.

    Raises ConfigError for an unknown size and for runs of one name.
    """
    if unknown := [size for size in sizes if size.lower() not in SIZES]:
        raise ConfigError(f"--sizes {unknown[0]} is not known; expected some of {', '.join(SIZES)}")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two runs have one name: {', '.join(names)}")
    if not sizes:
        return {(run.name, ""): run for run in runs}
    found = {}
    for run in runs:
        for size in sizes:
            found[run.name, size.lower()] = with_llm(run, size)
    return found


def with_llm(run: RunConfig, size: str) -> RunConfig:
    """The run with another LLM, one of SIZES."""
    content = run.model_dump(mode="json")
    architecture = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False}
    content["llm"]["architecture"] = {**architecture, **SIZES[size.lower()]}
    content["start_from"] = None
    return parse_config(content)


def sweep(
    runs: Mapping[tuple[str, str], RunConfig],
    gpu: Gpu,
    network: Network,
    host: Callable[[str], HostTimes],
) -> list[Row]:
    """The best strategy for each run, kind of scaling and number of GPUs, whether it fits or not. `host`:
    its times for frozen, lora or full LLMs.
    """
    rows = []
    for (name, size), run in tqdm(runs.items(), desc="sweep", unit="model"):
        subject = subject_of(run)
        load = typical_load(run, subject.visual_tokens, None, None)
        times = host(run.train.llm.mode)
        for kind, gpus in product(("strong", "weak"), GPU_COUNTS):
            packs = STRONG_PACKS if kind == "strong" else WEAK_PACKS * gpus
            if packs % gpus:
                continue
            cluster = Cluster(gpus, gpu, network, times)
            best = strategies(with_packs(subject, packs), cluster, load)[0]
            tokens_per_s = packs * load.tokens / best.time.seconds
            rows.append(Row(name, size, kind, gpus, best, tokens_per_s))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line for each row; what does not fit has no speed."""
    lines = [
        f"{'run':<16} {'LLM':<4} {'scaling':<7} {'GPUs':>5} {'ZeRO':>4} {'checkpointed':>12} {'GiB':>6} "
        f"{'tokens/s':>12} {'of a GPU':>9} {'MFU':>5} bound by"
    ]
    for row in rows:
        start = f"{row.run:<16} {row.size:<4} {row.kind:<7} {row.gpus:>5}"
        if not row.best.fits:
            lines.append(f"{start} does not fit (at least {row.best.gib:.0f} GiB a rank)")
            continue
        mfu, _ = row.best.utilization()
        lines.append(
            f"{start} {row.best.stage:>4} {row.best.again:>12} {row.best.gib:>6.1f} {row.tokens_per_s:>12,.0f} "
            f"{row.tokens_per_s / row.gpus:>9,.0f} {mfu:>5.0%} {row.best.time.binding}"
        )
    return "\n".join(lines)


def picture(rows: Sequence[Row], where: str) -> bytes:
    """PNG: MFU over the number of GPUs; a row of panels for each run, strong and weak scaling."""
    runs = list(dict.fromkeys(row.run for row in rows))
    figure = Figure(figsize=(9, 1 + 3 * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), 2, sharex=True, sharey=True, squeeze=False)
    for (place, run), (column, kind) in product(enumerate(runs), enumerate(("strong", "weak"))):
        axes = panels[place, column]
        shown = [row for row in rows if row.run == run and row.kind == kind]
        for size in dict.fromkeys(row.size for row in shown):
            own = [row for row in shown if row.size == size and row.best.fits]
            mfu = [100 * row.best.utilization()[0] for row in own]
            axes.plot([row.gpus for row in own], mfu, "o-", markersize=3, label=size or "own LLM")
        axes.set_xscale("log", base=2)
        packs = f"{STRONG_PACKS} packs a step" if kind == "strong" else f"{WEAK_PACKS} packs a GPU"
        axes.set(title=f"{run}: {kind} scaling, {packs}", ylim=(0, 60))
        axes.grid(alpha=0.25)
    for axes in panels[-1]:
        axes.set_xlabel("GPUs")
    for axes in panels[:, 0]:
        axes.set_ylabel("MFU, %")
    panels[0, 0].legend(fontsize="small")
    figure.suptitle(f"{where}: a model, not a measurement")
    return to_png(figure, dpi=100)
