"""A run on given hardware: each strategy to train it, with its memory and time, and the best one."""

from __future__ import annotations

from dataclasses import dataclass, field

from pargo_ds.assembly.zero import zero_stage
from pargo_ds.errors import ConfigError
from pargo_ds.planning import compute, memory, network
from pargo_ds.planning.gathers import MicroStep, ZeroSizes, reductions
from pargo_ds.planning.hardware import Gpu, Network
from pargo_ds.planning.host import HostTimes
from pargo_ds.planning.load import Load
from pargo_ds.planning.schedule import StepTime
from pargo_ds.planning.subject import Subject
from pargo_ds.training.engine import deepspeed_settings, gathers_layers
from pargo_ds.training.gathering import KEPT_WHOLE
from pargo_ds.training.recompute import Recompute
from pargo_ds.training.states import adds_in_fp32

GIB = 2**30


@dataclass(frozen=True)
class Cluster:
    """The GPUs and the network on which a run would train."""

    ranks: int
    gpu: Gpu
    network: Network
    host: HostTimes


@dataclass(frozen=True)
class Strategy:
    """A ZeRO stage and a number of checkpointed layers, with the memory and time that they take."""

    stage: int
    again: int
    memory: dict[str, float]
    time: StepTime
    flops: compute.Flops
    collectives: int
    """Of weights and gradients in a micro-step."""
    gpu: Gpu = field(repr=False)

    @property
    def fits(self) -> bool:
        return memory.fits(self.memory, self.gpu)

    @property
    def gib(self) -> float:
        return sum(self.memory.values()) / GIB

    def utilization(self) -> tuple[float, float]:
        """(MFU, HFU) of a step."""
        able = self.time.seconds * self.gpu.tflops * 1e12 / self.time.micro_steps
        return sum(self.flops.model.values()) / able, sum(self.flops.hardware.values()) / able

    def __str__(self) -> str:
        return f"ZeRO-{self.stage}, {self.again} layers checkpointed"


def zero_sizes(subject: Subject, stage: int, ranks: int) -> ZeroSizes:
    """Of the run's DeepSpeed file where it is of this stage, then what the run sets, then
    DeepSpeed's defaults.
    """
    settings = deepspeed_settings(subject.run, ranks)
    asked = settings["zero_optimization"] if zero_stage(settings) == stage else {}
    defaults = {}
    if gathers_layers(subject.run, {"zero_optimization": {"stage": stage}}):
        defaults = {**subject.gather_defaults, "stage3_param_persistence_threshold": KEPT_WHOLE}
    return ZeroSizes.of(asked, defaults)


def strategy(subject: Subject, cluster: Cluster, load: Load, stage: int, again: int) -> Strategy:
    """Memory and time of a step under `stage` with `again` layers checkpointed."""
    run, ranks = subject.run, cluster.ranks
    sizes = zero_sizes(subject, stage, ranks)
    # what is computed again finds its weights gathered: some layers are as all
    steps = _communication(
        subject, subject.layers if again else 0, sizes, stage, run.check_ranks(ranks)
    )
    marks = Recompute(again, subject.layers, projector=again == subject.layers)
    flops = compute.micro_flops(subject.flops, run, load, marks)
    layer, rest = subject.saved(stage == 3)
    seconds = compute.product_s(flops, cluster.gpu)
    saved = layer * subject.layers + rest
    seconds["elementwise"] = compute.traffic_s(saved, layer * again, cluster.gpu)
    time = StepTime(
        micro_steps=len(steps),
        gpu=seconds,
        host=cluster.host.seconds(stage, run.train.zero3_gather, subject.layers, again),
        network=_network_s(subject, cluster, stage, steps),
        update=_update_s(subject, cluster, stage),
    )
    fp32_sum = adds_in_fp32(run, stage, ranks)
    parts = memory.zero_bytes(
        subject.rows, stage, ranks, run.train.precision, sizes, steps[0].most_live, fp32_sum
    )
    kept_again = float(subject.hidden * subject.number_bytes * run.batch.tokens_per_pack)
    parts |= memory.pack_bytes(layer, kept_again, subject.layers, rest, again)
    parts["logits"] = memory.logit_bytes(load.targets, subject.vocabulary)
    calls = steps[-1].collectives if ranks > 1 else 0
    return Strategy(stage, again, memory.device_bytes(parts), time, flops, calls, cluster.gpu)


def _communication(
    subject: Subject, again: int, sizes: ZeroSizes, stage: int, micro_steps: int
) -> list[MicroStep]:
    """Each micro-step of a step. ZeRO-1 reduces gradients in the last one only."""
    if stage == 3:
        first, later = subject.gathers(again, sizes)
        return [first, *[later] * (micro_steps - 1)]
    reduces = MicroStep((), (), reductions(subject.order(again), sizes.reduce_bucket), most_live=0)
    if stage == 2:
        return [reduces] * micro_steps
    return [*[MicroStep((), (), (), 0)] * (micro_steps - 1), reduces]


def _network_s(subject: Subject, cluster: Cluster, stage: int, steps: list[MicroStep]) -> float:
    """Seconds of a micro-step's collectives, the mean over `steps`; ZeRO 1 and 2 reduce whole
    buckets to all ranks.
    """
    where = (subject.number_bytes, cluster.ranks, cluster.gpu, cluster.network)
    total = 0.0
    for step in steps:
        total += network.total_s(step.reductions, *where, twice=stage < 3)
        total += network.total_s((*step.forward, *step.backward), *where)
    return total / len(steps)


def _update_s(subject: Subject, cluster: Cluster, stage: int) -> float:
    """The optimizer's own, and ZeRO 1's and 2's gather of the weights that it wrote."""
    own = compute.update_s(subject.trained / cluster.ranks, cluster.gpu)
    nbytes = float(subject.number_bytes * subject.trained) if stage < 3 else 0.0
    return own + network.gather_s(nbytes, cluster.ranks, cluster.gpu, cluster.network)


def fewest_layers(subject: Subject, cluster: Cluster, load: Load, stage: int) -> Strategy:
    """The strategy under `stage` with as few checkpointed layers as fit; with all, where none do."""
    none = strategy(subject, cluster, load, stage, 0)
    if none.fits:
        return none
    every = strategy(subject, cluster, load, stage, subject.layers)
    layer, _ = subject.saved(stage == 3)
    over = none.gib - cluster.gpu.memory_gib
    freed = none.gib - every.gib
    if not every.fits or layer <= 0 or freed <= 0:
        return every
    # activations fall by the same for each layer; one more for what is rounded
    again = min(subject.layers, int(over / freed * subject.layers) + 1)
    partly = strategy(subject, cluster, load, stage, again)
    return partly if partly.fits else every


def asked_strategy(subject: Subject, cluster: Cluster, load: Load) -> Strategy:
    """The strategy that the run file asks for."""
    stage = zero_stage(deepspeed_settings(subject.run, cluster.ranks))
    word = subject.run.train.activation_checkpointing
    if word == "auto":
        return fewest_layers(subject, cluster, load, stage)
    again = {"none": 0, "full": subject.layers}.get(str(word))
    layers = int(word) if again is None else again
    return strategy(subject, cluster, load, stage, min(subject.layers, layers))


def strategies(subject: Subject, cluster: Cluster, load: Load) -> list[Strategy]:
    """ZeRO 1 to 3, each with as few checkpointed layers as fit; the fastest that fits first."""
    # of equals the first one is taken: ZeRO-1 is as ZeRO-2 on one rank
    found = [fewest_layers(subject, cluster, load, stage) for stage in (2, 3, 1)]
    return sorted(found, key=lambda one: (not one.fits, one.time.seconds, one.gib))


def check_fits(asked: Strategy, others: list[Strategy], cluster: Cluster) -> None:
    """Raise ConfigError, one sentence, for a run whose own settings do not fit."""
    if asked.fits:
        return
    largest = max(asked.memory, key=lambda part: asked.memory[part])
    fitting = [one for one in others if one.fits]
    advice = (
        f"{fitting[0]} fits in {fitting[0].gib:.1f} GiB"
        if fitting
        else "no ZeRO stage fits with every layer checkpointed: take more GPUs, larger ones or a "
        "smaller batch.tokens_per_pack"
    )
    raise ConfigError(
        f"does not fit: {asked} on {cluster.ranks} x {cluster.gpu.name} needs {asked.gib:.1f} GiB a rank of "
        f"{cluster.gpu.memory_gib:.1f} GiB, most of it for {largest} "
        f"({asked.memory[largest] / GIB:.1f} GiB); {advice}"
    )
