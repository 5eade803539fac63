"""RunConfig + ds_configs/*.json -> a DeepSpeed engine.

The JSON holds what DeepSpeed alone decides (ZeRO stage, offload, buckets). What the run file decides is filled in
here and may not stand in both places.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pargo_ds import distributed
from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.settings_file import read_json
from pargo_ds.training.optimizer import parameter_groups

# Keys with their home in the run file.
FILLED_HERE = {
    "train_batch_size": "batch.packs_per_step",
    "train_micro_batch_size_per_gpu": "(always one pack)",
    "gradient_accumulation_steps": "batch.packs_per_step / ranks",
    "gradient_clipping": "train.clip_norm",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "optimizer": "train.<part>.lr, weight_decay",
    "scheduler": "train.warmup_steps, train.<part>.min_lr",
}


def read_deepspeed_json(path: str | Path) -> dict[str, Any]:
    """Read and check a DeepSpeed JSON file; ConfigError when missing, broken or holding keys of the run file."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"deepspeed: {path} does not exist; shipped ones lie in ds_configs/")
    settings = read_json(path)
    twice = [f"{key} (its home is {FILLED_HERE[key]})" for key in settings if key in FILLED_HERE]
    if twice:
        raise ConfigError(f"deepspeed: {path} sets what the run file decides: {', '.join(twice)}; remove it there")
    if settings.get("zero_optimization", {}).get("round_robin_gradients"):
        # DeepSpeed 0.19.8 then names the pieces of ZeRO 1 and 2 in another order than they lie in, so that checkpoints
        # would hold one parameter's weights under another's name.
        raise ConfigError(f"deepspeed: {path} sets round_robin_gradients, which checkpoints do not survive; remove it")
    for part in ("offload_optimizer", "offload_param"):
        if (settings.get("zero_optimization", {}).get(part) or {}).get("device") == "nvme":
            # DeepSpeed 0.19.8 does not give back a state that it has swapped out: the first checkpoint would fail.
            raise ConfigError(f'deepspeed: {path} sets {part} to "nvme", which cannot be checkpointed; use "cpu"')
    return settings


def deepspeed_settings(run: RunConfig, world_size: int) -> dict[str, Any]:
    """The complete DeepSpeed configuration of this run for `world_size` ranks."""
    settings = read_deepspeed_json(run.deepspeed)
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["gradient_accumulation_steps"] = run.check_ranks(world_size)
    settings["gradient_clipping"] = run.train.clip_norm
    # Without the check ZeRO 1 and 2 would apply a bf16 step whose gradient is no number; ZeRO 3 and fp32 never do.
    settings["bf16"] = {"enabled": run.train.precision == "bf16", "check_grad_overflow": True}
    settings["steps_per_print"] = 10**9  # the progress bar and metrics.jsonl report
    if offloads_optimizer(settings) and not torch.cuda.is_available():
        # DeepSpeed insists on its compiled CPU Adam otherwise; on CPU torch's AdamW does the same without a build.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def zero_stage(settings: dict[str, Any]) -> int:
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    offload = settings.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def start_distributed(timeout_minutes: float = 30) -> torch.device:
    """Join the launcher's process group (or make one of a single rank) and return this rank's device."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        # On CPU DeepSpeed would compile a shared-memory collective at each first start (50-110 s); gloo needs none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Alone on any free port, so that two such runs get on with each other.
    os.environ.setdefault("MASTER_PORT", "29511" if "WORLD_SIZE" in os.environ else "0")
    for key, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(key, value)
    device = torch.device("cuda", distributed.local_rank()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo", timeout=timedelta(minutes=timeout_minutes), verbose=False
    )
    return device


@contextmanager
def whole_weight(weight: torch.nn.Parameter) -> Iterator[None]:
    """In here a weight that ZeRO-3 has partitioned is whole on every rank (collective); others are whole anyway."""
    if not hasattr(weight, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        yield


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """In here a change of the whole module's dtype leaves its buffers as they are."""
    kept = [
        (module, name, buffer) for module in model.modules() for name, buffer in module.named_buffers(recurse=False)
    ]
    yield
    for module, name, buffer in kept:
        setattr(module, name, buffer.to(getattr(module, name).device))


def make_optimizer(groups: list[dict], run: RunConfig, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW; DeepSpeed's CPU Adam where the states are offloaded from a GPU."""
    options = {"betas": run.train.betas, "eps": run.train.eps}
    if offloads_optimizer(settings) and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    return torch.optim.AdamW(groups, **options, fused=torch.cuda.is_available())


def build_engine(model: nn.Module, run: RunConfig, settings: dict[str, Any]) -> Any:
    """deepspeed.initialize over the trainable parameters of `model` (freezing already applied)."""
    import deepspeed

    optimizer = make_optimizer(parameter_groups(model, run), run, settings)
    with buffers_kept(model):  # in bf16 runs DeepSpeed casts the whole module
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine
