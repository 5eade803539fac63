"""A plan as text: what fits, what it takes, what binds it."""

from __future__ import annotations

from collections.abc import Sequence

from pargo_ds.config import RunConfig
from pargo_ds.planning.load import Load
from pargo_ds.planning.network import nodes_of
from pargo_ds.planning.plan import GIB, Cluster, Strategy
from pargo_ds.planning.storage import IMAGE_BYTES, checkpoint_bytes, data_bytes, save_s
from pargo_ds.planning.subject import Subject

WORTH_A_CHANGE = 1.05
"""Times as fast; what is less lies within what the plan cannot tell apart."""
NOT_CONFIRMED = "A model, not a measurement: no GPU has confirmed it (docs/scaling.md says what of it is measured)."


def plan_text(
    subject: Subject,
    cluster: Cluster,
    load: Load,
    asked: Strategy,
    others: Sequence[Strategy],
    disk_gbs: float,
) -> str:
    """The whole plan. `others`: the fastest that fits first."""
    sections = [
        f"# {subject.run.name} on {cluster.ranks} x {cluster.gpu.name}, {cluster.network}",
        NOT_CONFIRMED,
        f"assumed of a pack: {load.tokens:,} tokens, {load.images} images, {load.targets} targets; host "
        f"time from {cluster.host.source}",
        f"\n# the run as its file is: {asked}",
        *compile_text(subject.run),
        memory_text(asked),
        time_text(asked),
        throughput_text(subject, cluster, load, asked),
        "\n# ZeRO stages, each with as few checkpointed layers as fit; the fastest first",
        strategies_table(others),
        best_text(asked, others[0]),
        "\n# data and checkpoints",
        storage_text(subject, cluster, load, asked, disk_gbs),
        "",
        in_short(subject, asked),
    ]
    return "\n".join(sections)


def compile_text(run: RunConfig) -> list[str]:
    """What the plan leaves out of a compiled run; nothing for others."""
    if run.train.compile == "none":
        return []
    return [
        "train.compile is not in this plan: memory and times are those of the layers uncompiled"
    ]


def in_short(subject: Subject, one: Strategy) -> str:
    """One line; slurm/check.sh shows it."""
    mfu, _ = one.utilization()
    steps = subject.run.train.steps
    whole = "" if steps is None else f", {duration(steps * one.time.seconds / 3600)} in all"
    return (
        f"in short: {one.gib:.1f} of {one.gpu.memory_gib:.1f} GiB, {one.time.seconds:.2f} s a step{whole}, "
        f"MFU {mfu:.0%}, bound by the {one.time.binding}; a model, not a measurement"
    )


def memory_text(one: Strategy) -> str:
    """GiB of a rank by part, largest first."""
    parts = sorted(one.memory.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts if value)
    return f"memory of a rank: {one.gib:.1f} of {one.gpu.memory_gib:.1f} GiB ({shown})"


def time_text(one: Strategy) -> str:
    """Milliseconds of a micro-step by part, the step, and what binds it."""
    time = one.time
    parts = ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in time.gpu.items())
    mfu, hfu = one.utilization()
    return (
        f"micro-step: GPU {1e3 * sum(time.gpu.values()):.0f} ms ({parts}), host {1e3 * time.host:.0f} ms, "
        f"{one.collectives} collectives {1e3 * time.network:.0f} ms of which {1e3 * time.exposed:.0f} ms "
        f"are not hidden\n"
        f"step: {time.micro_steps} micro-steps and {1e3 * time.update:.0f} ms for the update = "
        f"{time.seconds:.2f} s; MFU {mfu:.0%}, HFU {hfu:.0%}; bound by the {time.binding}"
    )


def throughput_text(subject: Subject, cluster: Cluster, load: Load, one: Strategy) -> str:
    """Tokens and images a second, and the length of the run."""
    run, seconds = subject.run, one.time.seconds
    packs = run.batch.packs_per_step
    said = (
        f"{packs * load.tokens / seconds:,.0f} tokens and {packs * load.images / seconds:,.0f} images a second"
        f" ({packs * load.tokens / seconds / cluster.ranks:,.0f} and "
        f"{packs * load.images / seconds / cluster.ranks:,.1f} of a GPU)"
    )
    if run.train.steps is None:
        return f"{said}; how long {run.train.epochs} epochs are depends on the data"
    hours = run.train.steps * seconds / 3600
    return (
        f"{said}\n{run.train.steps:,} steps: {duration(hours)}, {hours * cluster.ranks:,.0f} GPU-hours, "
        "without validation, evaluation and what fails"
    )


def duration(hours: float) -> str:
    """In hours up to two days."""
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def strategies_table(found: Sequence[Strategy]) -> str:
    """A row for each strategy."""
    lines = [
        f"{'ZeRO':>4} {'checkpointed':>12} {'GiB a rank':>10} {'fits':>5} {'s a step':>9} {'MFU':>5} bound by"
    ]
    for one in found:
        mfu, _ = one.utilization()
        lines.append(
            f"{one.stage:>4} {one.again:>12} {one.gib:>10.1f} {'yes' if one.fits else 'no':>5} "
            f"{one.time.seconds:>9.2f} {mfu:>5.0%} {one.time.binding}"
        )
    return "\n".join(lines)


def best_text(asked: Strategy, best: Strategy) -> str:
    """What to set."""
    faster = asked.time.seconds / best.time.seconds
    if (best.stage, best.again) == (asked.stage, asked.again) or faster < WORTH_A_CHANGE:
        return (
            f"none of these is faster than the run file's own settings by {WORTH_A_CHANGE - 1:.0%}"
        )
    return (
        f"best: deepspeed: a file with stage {best.stage}, train.activation_checkpointing: "
        f"{best.again or 'none'} ({faster:.2f} times as fast as the run file's)"
    )


def storage_text(
    subject: Subject, cluster: Cluster, load: Load, one: Strategy, disk_gbs: float
) -> str:
    """What is read and written, and how fast it would have to be."""
    run, nodes = subject.run, nodes_of(cluster.ranks, cluster.gpu)
    images_s = run.batch.packs_per_step * load.images / one.time.seconds
    nbytes, samples = data_bytes(run)
    of_image = nbytes / samples if samples else IMAGE_BYTES
    source = f"of {samples:,} samples here" if samples else "assumed; no shards are here"
    saved = checkpoint_bytes(subject.trained)
    seconds = save_s(saved, nodes, disk_gbs, cluster.network)
    every = run.checkpoint.every * one.time.seconds
    return (
        f"data: {of_image / 1e3:.0f} kB a sample ({source}), {images_s * of_image / 1e6:,.0f} MB/s for all "
        f"nodes, {images_s * of_image / nodes / 1e6:,.1f} MB/s a node\n"
        f"checkpoint: {saved / GIB:.2f} GiB, {run.checkpoint.keep} kept "
        f"{saved * run.checkpoint.keep / GIB:.1f} GiB; written in {seconds:.1f} s at {disk_gbs:g} GB/s a node, "
        f"one every {every / 60:.0f} minutes"
    )
