"""RunConfig + ds_configs/*.json -> a DeepSpeed engine.

The JSON holds what DeepSpeed alone decides (ZeRO stage, offload, buckets). What the run file
decides is filled in here and may not stand in both places.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from pargo_ds import distributed
from pargo_ds.assembly.zero import zero_stage
from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError
from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.settings_file import read_json
from pargo_ds.training.compiling import BACKEND, check_stage, compile_layers
from pargo_ds.training.gathering import (
    KEPT_WHOLE,
    described,
    gather_sizes,
    layers_to_gather,
    watch_inputs,
)
from pargo_ds.training.optimizer import parameter_groups
from pargo_ds.training.states import adds_in_fp32

log = logging.getLogger("pargo_ds")

# Keys with their home in the run file.
FILLED_HERE = {
    "train_batch_size": "batch.packs_per_step",
    "train_micro_batch_size_per_gpu": "(always one row of packs)",
    "gradient_accumulation_steps": "batch.packs_per_step / ranks / batch.packs_per_forward",
    "gradient_clipping": "train.clip_norm",
    "bf16": "train.precision",
    "data_types": "train.gradient_accumulation",
    "fp16": "train.precision",
    "optimizer": "train.<part>.lr, weight_decay",
    "scheduler": "train.warmup_steps, train.<part>.min_lr",
}
KNOWN_WRONG = {
    **dict.fromkeys(
        (
            "zero_quantized_weights",
            "zero_quantized_gradients",
            "zero_quantized_nontrainable_weights",
        ),
        "quantised ZeRO++ fails or trains badly in bf16 (DeepSpeed's issues 4852 and 6926 are open)",
    ),
    "stage3_module_granularity_threshold": (
        "it makes gathered weights lose their shape in this model (seen with DeepSpeed 0.19.8); "
        "train.zero3_gather: layers does what it is for"
    ),
}
"""Settings of zero_optimization that are refused when they are set, and why."""
LEFT_TO_DEEPSPEED = (
    "zero_optimization", "activation_checkpointing", "aio", "comms_logger", "communication_data_type",
    "dump_state", "flops_profiler", "gradient_predivide_factor", "memory_breakdown", "prescale_gradients",
    "sparse_gradients", "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)  # fmt: skip
"""Keys of DeepSpeed's that people write; others are taken, unless they look like one of these."""


def read_deepspeed_json(path: str | Path) -> dict[str, Any]:
    """Read and check a DeepSpeed JSON file. Raises ConfigError when it is missing, broken or holds
    keys of the run file.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"deepspeed: {path} does not exist; shipped ones lie in ds_configs/")
    settings = read_json(path)
    twice = [f"{key} (its home is {FILLED_HERE[key]})" for key in settings if key in FILLED_HERE]
    if twice:
        raise ConfigError(
            f"deepspeed: {path} sets what the run file decides: {', '.join(twice)}; remove it there"
        )
    known = [*FILLED_HERE, *LEFT_TO_DEEPSPEED]
    for key in settings.keys() - set(known):  # DeepSpeed passes over what it does not know
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            raise ConfigError(
                f"deepspeed: {path}: {key} is unknown to DeepSpeed; did you mean {near[0]}?"
            )
    check_zero(settings.get("zero_optimization"), path)
    compiling = settings.get("compile")
    if isinstance(compiling, dict) and compiling.get("deepcompile"):
        raise ConfigError(
            f"deepspeed: {path} sets compile.deepcompile, which fails with FlashAttention (DeepSpeed's issue 7228 is "
            "open) and takes ZeRO's hooks away, on which checkpoints rely; remove it"
        )
    return settings


def check_zero(zero: Any, path: Path) -> None:
    """Raise ConfigError for a section zero_optimization that DeepSpeed does not take, or that
    checkpoints do not survive.
    """
    choose_accelerator()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if (
        not isinstance(zero, dict)
        or type(zero.get("stage")) is not int
        or not 1 <= zero["stage"] <= 3
    ):
        found = zero.get("stage") if isinstance(zero, dict) else zero
        raise ConfigError(
            f'deepspeed: {path} says {found!r} about the ZeRO stage, expected {{"zero_optimization": {{"stage": N}}}} '
            "with an N of 1, 2 or 3"
        )
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError(f"deepspeed: {path}: zero_optimization: {'; '.join(faults)}") from error
    for key, reason in KNOWN_WRONG.items():
        if zero.get(key):
            raise ConfigError(
                f"deepspeed: {path} sets {key}, which is refused: {reason}; remove it"
            )
    if zero.get("round_robin_gradients"):
        # DeepSpeed 0.19.8 then names the pieces of ZeRO 1 and 2 in another order than they lie in,
        # so that checkpoints would hold one parameter's weights under another's name.
        raise ConfigError(
            f"deepspeed: {path} sets round_robin_gradients, which checkpoints do not survive; remove it"
        )
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device") == "nvme":
            # DeepSpeed 0.19.8 does not give back a state that it has swapped out: the first
            # checkpoint would fail.
            raise ConfigError(
                f'deepspeed: {path} sets {part} to "nvme", which cannot be checkpointed; use "cpu"'
            )


def deepspeed_settings(run: RunConfig, world_size: int) -> dict[str, Any]:
    """Return the complete DeepSpeed configuration of this run for `world_size` ranks."""
    settings = read_deepspeed_json(run.deepspeed)
    check_stage(run, zero_stage(settings))
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["gradient_accumulation_steps"] = run.micro_batches(world_size)
    settings["gradient_clipping"] = run.train.clip_norm
    # Without the check ZeRO 1 and 2 would apply a bf16 step whose gradient is no number; ZeRO 3 and
    # fp32 never do.
    settings["bf16"] = {"enabled": run.train.precision == "bf16", "check_grad_overflow": True}
    if run.train.gradient_accumulation == "fp32" and zero_stage(settings) == 1:
        raise ConfigError(
            "train.gradient_accumulation: fp32 cannot work with ZeRO-1, under which DeepSpeed then takes an "
            "optimizer that checkpoints cannot read; take ds_configs/zero2.json, or set it to auto"
        )
    if adds_in_fp32(run, zero_stage(settings), world_size):
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    settings["steps_per_print"] = 10**9  # the progress bar and metrics.jsonl report
    if gathers_layers(run, settings):  # before weights are loaded, which are partitioned then
        settings["zero_optimization"].setdefault("stage3_param_persistence_threshold", KEPT_WHOLE)
    if offloads_optimizer(settings) and not torch.cuda.is_available():
        # DeepSpeed insists on its compiled CPU Adam otherwise; on CPU torch's AdamW does the same
        # without a build.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def gathers_layers(run: RunConfig, settings: dict[str, Any]) -> bool:
    """Whether ZeRO-3 shall gather whole layers."""
    return run.train.zero3_gather == "layers" and zero_stage(settings) == 3


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """Whether the optimizer's states lie in host memory."""
    offload = settings.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def choose_accelerator() -> bool:
    """Tell DeepSpeed, before it is first imported, whether it will have a GPU, and return whether
    there is one.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return on_gpu


def start_distributed(timeout_minutes: float = 30) -> torch.device:
    """Join the launcher's process group (or make one of a single rank) and return this rank's
    device.
    """
    on_gpu = choose_accelerator()
    import deepspeed

    if not on_gpu:
        # On CPU DeepSpeed would compile a shared-memory collective at each first start (50-110 s);
        # gloo needs none.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Alone on any free port, so that two such runs get on with each other.
    os.environ.setdefault("MASTER_PORT", "29511" if "WORLD_SIZE" in os.environ else "0")
    for key, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
    ):
        os.environ.setdefault(key, value)
    device, backend = torch.device("cpu"), "gloo"
    if on_gpu:
        device, backend = torch.device("cuda", distributed.local_rank()), "nccl"
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        dist_backend=backend,
        timeout=timedelta(minutes=timeout_minutes),
        verbose=False,
    )
    return device


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move all buffers of a model to `device`.

    DeepSpeed moves no buffer when it finds that some weights were partitioned as they were loaded
    (0.19.8), although vision encoder and projector were not.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """In here a change of the whole module's dtype leaves its buffers as they are."""
    kept = []
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            kept.append((module, name, buffer))
    yield
    for module, name, buffer in kept:
        setattr(module, name, buffer.to(getattr(module, name).device))


def make_optimizer(
    groups: list[dict], run: RunConfig, settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """Return AdamW, or DeepSpeed's CPU Adam where the states are offloaded from a GPU."""
    betas, eps = run.train.betas, run.train.eps
    if offloads_optimizer(settings) and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, betas=betas, eps=eps)
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=torch.cuda.is_available())


def build_engine(
    model: ParGoForConditionalGeneration,
    run: RunConfig,
    settings: dict[str, Any],
    backend: str = BACKEND,
) -> Any:
    """Return DeepSpeed's engine over the trainable parameters of `model` (freezing already
    applied), its layers compiled by `backend` where train.compile asks for it.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if gathers_layers(run, settings):
        layers = layers_to_gather(model)
        for layer in layers:
            deepspeed.utils.set_z3_leaf_module(layer, True)
        watch_inputs(layers)
        for key, value in gather_sizes(layers).items():
            settings["zero_optimization"].setdefault(key, value)
        log.info("%s", described(layers))
    optimizer = make_optimizer(parameter_groups(model, run), run, settings)
    move_buffers(model, torch.device(get_accelerator().current_device_name()))
    with buffers_kept(model):  # in bf16 runs DeepSpeed casts the whole module
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
    if run.train.compile == "layers":
        compile_layers(model, run, zero_stage(settings), backend)
    return engine
