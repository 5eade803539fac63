"""Benchmarks by their own rules, one file each; a new one is its file and its name here."""

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Benchmark
from pargo_ds.evaluation.benchmarks import (
    blink,
    countbench,
    cvbench,
    gqa,
    hallusion,
    mmbench,
    mme,
    mmstar,
    mmvet,
    mmvp,
    pope,
    realworldqa,
    refcoco,
    scenes,
    scienceqa,
    seed,
    textvqa,
    vqav2,
    vqav2test,
    vstar,
)

MODULES = (mme, pope, mmbench, seed, gqa, vqav2, textvqa, scienceqa, hallusion, mmvp, vstar,
           cvbench, realworldqa, countbench, blink, mmstar, mmvet, vqav2test, refcoco, scenes)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in MODULES}


def benchmark_named(name: str) -> Benchmark:
    """Raises UserError for a name that is not known."""
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark is named '{name}': there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
