"""--dry-run: everything about a run that can be known without a GPU, weights or network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pargo_ds.assembly.configs import build_meta_model
from pargo_ds.assembly.freezing import PartCount, apply_freezing, format_table
from pargo_ds.assembly.model import prove_llm
from pargo_ds.assembly.zero import zero_stage
from pargo_ds.config import RunConfig
from pargo_ds.data.shards.folder import is_remote
from pargo_ds.data.shards.mds import read_index
from pargo_ds.errors import ConfigError
from pargo_ds.settings_file import format_yaml
from pargo_ds.training.compiling import check_llm, layers_to_compile
from pargo_ds.training.engine import deepspeed_settings
from pargo_ds.training.meters import FlopModel
from pargo_ds.training.recompute import Need, estimate
from pargo_ds.training.states import adds_in_fp32, state_bytes


def describe(run: RunConfig, world_size: int, export_says: Callable[[], str]) -> str:
    """Return the resolved run, freeze table, batch arithmetic and memory of the model's states, as
    text.

    `export_says`: tries export (or says why not) after all else was checked; convert lies above
    training.

    Raises ConfigError or ValueError for whatever would stop the run later.
    """
    accumulation = run.check_ranks(world_size)
    settings = deepspeed_settings(run, world_size)
    data = shards_here(run)
    model = build_meta_model(run)
    rows = apply_freezing(model, run.train)
    packing = prove_llm(run, model.config.text_config)
    check_llm(run, model.config.text_config)
    if run.train.compile == "layers":
        layers_to_compile(model, run, zero_stage(settings))
    flops = FlopModel.of(model, run.vision.image_size)
    sections = [
        "# resolved run",
        format_yaml(run.model_dump(mode="json")).rstrip(),
        "\n# projector",
        model.config.projector_config.describe(model.config.vision_config.num_patches),
        "\n# what trains",
        format_table(rows),
        "\n# batch",
        batch_arithmetic(run, world_size, accumulation, model.config.visual_tokens),
        f"samples of a pack stay apart on the road '{packing.road}' ({packing.reason}), by a tiny copy of the LLM",
        "\n# data",
        data,
        "\n# model states per rank (weights, gradients, fp32 copies and Adam moments; activations come on top)",
        state_memory(rows, zero_stage(settings), world_size, run),
        activation_memory(estimate(run, model, settings)),
        "\n# forward arithmetic",
        f"vision {flops.vision_per_image / 1e9:,.1f} GFLOP per image, projector "
        f"{flops.projector_per_image / 1e9:,.1f} GFLOP per image, "
        f"LLM {flops.llm_per_token / 1e9:,.2f} GFLOP per token",
        "\n# export",
        export_says(),
        "\ndry run: no fault found",
    ]
    return "\n".join(sections)


NOT_HERE = "is not on this machine; a run that starts without it ends with status 2"


def shards_here(run: RunConfig) -> str:
    """Return each folder of the run's data with its samples, or that it is not on this machine,
    which is no fault here.

    Raises ValueError, as the run would, for a folder that is there and holds no shards or no
    sample.
    """
    paths = {f"data.train.{number}": stream.path for number, stream in enumerate(run.data.train)}
    if run.data.validation:
        paths["data.validation"] = run.data.validation
    lines = []
    for name, path in paths.items():
        if is_remote(path):
            said = "in an object store, not looked at"
        elif not Path(path).exists():
            said = NOT_HERE
        else:
            samples = sum(shard["samples"] for shard in read_index(path).shards)
            if not samples:
                raise ConfigError(
                    f"{name}: {path} is a folder of shards without a sample; build it again"
                )
            said = f"{samples:,} samples"
        lines.append(f"{name}: {path}: {said}")
    for name, path in run.evaluation.benchmarks.items():
        said = "is read when the run starts" if Path(path).exists() else NOT_HERE
        lines.append(f"evaluation.benchmarks.{name}: {path}: {said}")
    return "\n".join(lines)


def batch_arithmetic(run: RunConfig, world_size: int, accumulation: int, visual: int) -> str:
    """Return how packs, ranks and tokens multiply, with `visual` tokens an image."""
    batch = run.batch
    tokens = batch.packs_per_step * batch.tokens_per_pack
    by_tokens = batch.tokens_per_pack // (visual + 1)
    return "\n".join(
        [
            f"{batch.packs_per_step} packs per step = {world_size} ranks x {accumulation} packs",
            f"at most {batch.packs_per_forward} of them run through the model together -> "
            f"{run.micro_batches(world_size)} micro-batches per rank",
            f"{batch.tokens_per_pack:,} tokens per pack -> at most {tokens:,} tokens per step",
            f"{visual} visual tokens per image -> at most {min(by_tokens, batch.images_per_pack)} images "
            f"per pack, {min(by_tokens, batch.images_per_pack) * batch.packs_per_step} per step",
        ]
    )


def activation_memory(need: Need) -> str:
    """Return the GiB of a rank's full row without activation checkpointing and with it in all
    layers.
    """
    states = need.states
    without, again = ((need.total(n) - states) / 2**30 for n in (0, need.layers))
    return (
        f"activations of a full row of packs, at most: {without:.2f} GiB, {again:.2f} GiB with activation "
        f"checkpointing in all {need.layers} layers (train.activation_checkpointing)"
    )


def state_memory(rows: list[PartCount], stage: int, world_size: int, run: RunConfig) -> str:
    """Return the GiB per rank of weights, gradients and optimizer under this ZeRO stage."""
    fp32_sum = adds_in_fp32(run, stage, world_size)
    parts = state_bytes(rows, stage, world_size, run.train.precision, {}, fp32_sum)
    del parts["whole for a moment"]
    text = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())
    return f"ZeRO-{stage} on {world_size} ranks: {text} GiB; together {sum(parts.values()) / 2**30:.2f} GiB"
