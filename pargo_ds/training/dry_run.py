"""--dry-run: everything about a run that can be known without a GPU, weights or network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.data.shards import read_index
from pargo_ds.data.stores import is_remote
from pargo_ds.settings_file import format_yaml
from pargo_ds.training.assembly import build_meta_model, prove_llm
from pargo_ds.training.engine import deepspeed_settings, zero_stage
from pargo_ds.training.freezing import PartCount, apply_freezing, format_table
from pargo_ds.training.meters import FlopModel


def describe(run: RunConfig, world_size: int, export_says: Callable[[], str]) -> str:
    """The resolved run, freeze table, batch arithmetic and memory of the model's states, as text.

    `export_says`: tries export (or says why not) after all else was checked; convert lies above training.

    Raises ConfigError or ValueError for whatever would stop the run later.
    """
    accumulation = run.check_ranks(world_size)
    settings = deepspeed_settings(run, world_size)
    data = shards_here(run)
    model = build_meta_model(run)
    rows = apply_freezing(model, run.train)
    packing = prove_llm(run, model.config.text_config)
    flops = FlopModel.of(model, run.vision.image_size)
    sections = [
        "# resolved run",
        format_yaml(run.model_dump(mode="json")).rstrip(),
        "\n# what trains",
        format_table(rows),
        "\n# batch",
        batch_arithmetic(run, world_size, accumulation),
        f"samples of a pack stay apart on the road '{packing.road}' ({packing.reason}), by a tiny copy of the LLM",
        "\n# data",
        data,
        "\n# model states per rank (weights, gradients, fp32 copies and Adam moments; activations come on top)",
        state_memory(rows, zero_stage(settings), world_size, run.train.precision),
        "\n# forward arithmetic",
        f"vision {flops.vision_per_image / 1e9:,.1f} GFLOP per picture, projector "
        f"{flops.projector_per_image / 1e9:,.1f} GFLOP per picture, "
        f"LLM {flops.llm_per_token / 1e9:,.2f} GFLOP per token",
        "\n# export",
        export_says(),
        "\ndry run: no fault found",
    ]
    return "\n".join(sections)


def shards_here(run: RunConfig) -> str:
    """Each folder of the run's data with its samples, or that it is not on this machine, which is no fault here.

    Raises ValueError, as the run would, for a folder that is there and holds no shards or no sample.
    """
    streams = [(f"data.train.{number}", stream.path) for number, stream in enumerate(run.data.train)]
    lines = []
    for name, path in [*streams, *([("data.held_out", run.data.held_out)] if run.data.held_out else [])]:
        if is_remote(path):
            said = "in an object store, not looked at"
        elif not Path(path).exists():
            said = "is not on this machine; a run that starts without it ends with status 2"
        else:
            samples = sum(shard["samples"] for shard in read_index(path)["shards"])
            if not samples:
                raise ConfigError(f"{name}: {path} is a folder of shards without a sample; build it again")
            said = f"{samples:,} samples"
        lines.append(f"{name}: {path}: {said}")
    return "\n".join(lines)


def batch_arithmetic(run: RunConfig, world_size: int, accumulation: int) -> str:
    """How packs, ranks and tokens multiply."""
    batch, visual = run.batch, run.projector.visual_tokens
    tokens = batch.packs_per_step * batch.tokens_per_pack
    by_tokens = batch.tokens_per_pack // (visual + 1)
    return "\n".join(
        [
            f"{batch.packs_per_step} packs per step = {world_size} ranks x {accumulation} micro-batches of one pack",
            f"{batch.tokens_per_pack:,} tokens per pack -> at most {tokens:,} tokens per step",
            f"{visual} visual tokens per picture ({run.projector.partial_tokens} partial + "
            f"{run.projector.global_tokens} global) -> at most {min(by_tokens, batch.pictures_per_pack)} pictures "
            f"per pack, {min(by_tokens, batch.pictures_per_pack) * batch.packs_per_step} per step",
        ]
    )


def state_memory(rows: list[PartCount], stage: int, world_size: int, precision: str) -> str:
    """GiB per rank of weights, gradients and optimizer under this ZeRO stage."""
    total, trained = sum(r.total for r in rows), sum(r.trainable for r in rows)
    size = 2 if precision == "bf16" else 4
    share = {stage_: world_size if stage >= stage_ else 1 for stage_ in (1, 2, 3)}
    weights = size * total / share[3]
    gradients = size * trained / share[2]
    optimizer = (12 if precision == "bf16" else 8) * trained / share[1]
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    text = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())
    return f"ZeRO-{stage} on {world_size} ranks: {text} GiB; together {sum(parts.values()) / 2**30:.2f} GiB"
