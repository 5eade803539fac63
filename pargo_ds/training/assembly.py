"""RunConfig -> processor, model with its pretrained parts, loaders.

Under ZeRO-3 the LLM (or a whole exported model) is partitioned while it loads, so that no rank ever holds all of it;
vision encoder and projector are small and are partitioned when DeepSpeed takes the model over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from pargo_ds import distributed
from pargo_ds.batch import Batch
from pargo_ds.checkpoint.folder_hashes import check_hashes
from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor, ParGoVisionConfig
from pargo_ds.model.packing import Packing, PackingError, prove_packing
from pargo_ds.model.vision import VisionTower, load_pretrained_vision
from pargo_ds.training.descriptions import build_meta_model as build_meta_model
from pargo_ds.training.descriptions import check_start, llm_config, model_config
from pargo_ds.training.descriptions import vision_config as vision_config
from pargo_ds.training.engine import whole_weight, zero_stage
from pargo_ds.training.meters import FlopModel
from pargo_ds.training.processor import build_processor as build_processor
from pargo_ds.training.processor import check_processor as check_processor
from pargo_ds.training.processor import check_taken_over as check_taken_over

LATER_OPTIONS = {"norm": "pre", "norm_eps": 1e-5, "query_positions": False, "soft_prompt": False}
"""Options of the projector that came after the first checkpoints, at values that change nothing."""


def dtype_of(run: RunConfig) -> torch.dtype:
    return torch.bfloat16 if run.train.precision == "bf16" else torch.float32


# Model


def build_model(
    run: RunConfig, processor: ParGoProcessor, settings: dict[str, Any] | None
) -> ParGoForConditionalGeneration:
    """The model with its weights, nothing frozen yet. `settings`: DeepSpeed's; None builds without DeepSpeed.

    Raises ConfigError when weights and run file do not belong together.
    """
    prove_llm(run, llm_config(run))  # before weights are loaded, which may take long
    zero3 = settings if settings is not None and zero_stage(settings) == 3 else None
    model = load_model(run, processor, zero3)
    model.set_attention(**run.attention.model_dump())
    if run.train.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(run.seed + 1 + distributed.rank())  # dropout differs by rank
    return model


def load_model(
    run: RunConfig, processor: ParGoProcessor, zero3: dict[str, Any] | None
) -> ParGoForConditionalGeneration:
    """The model with its weights in the run's precision. Raises as build_model does."""
    torch.manual_seed(run.seed)  # every rank draws the same projector
    model = load_exported(run, zero3) if run.start_from is not None else assemble_parts(run, processor, zero3)
    cast_as_loaded(model, dtype_of(run))
    return model


def cast_as_loaded(model: ParGoForConditionalGeneration, dtype: torch.dtype) -> None:
    """Cast a model, in place, to the types that from_pretrained gives an export of it.

    Some buffers are computed in fp32 whatever the weights' type. Rotary frequencies in bf16 would train another model
    than the exported one: they are 0.44 rad off at position 1,000 (measured).
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            loaded = dict(ParGoForConditionalGeneration(model.config).named_buffers())
    finally:
        torch.set_default_dtype(before)
    computed = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    model.to(dtype)
    for name, buffer in computed.items():
        module, _, key = name.rpartition(".")
        if name in loaded and loaded[name].dtype != dtype:
            setattr(model.get_submodule(module), key, buffer.to(loaded[name].dtype))


def prove_llm(run: RunConfig, config: PretrainedConfig) -> Packing:
    """How packed samples stay apart in this LLM, computed on a tiny copy of it.

    Raises ConfigError when they cannot, when a frozen LLM would not compute as in inference, or when it does not run
    in the run's precision.
    """
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise ConfigError(
            f"llm.name: the weights of {run.llm.name} are quantised ({method}): they do not train, and an export would "
            "be another model. Name the release in bfloat16, or write one: load it with transformers and "
            "quantization_config=...(dequantize=True), then save_pretrained"
        )
    try:
        packing = prove_packing(config, run.batch.tokens_per_pack)
    except PackingError as error:
        raise ConfigError(f"llm.name: {run.llm.name}: {error}") from error
    if run.train.llm.mode == "frozen" and packing.noise is not None:
        raise ConfigError(
            f"train.llm.mode: {run.llm.name} ({config.model_type}) cannot be frozen: while training it computes "
            f"something else than in inference, even without dropout ({packing.noise})"
        )
    if dtype_of(run) == torch.bfloat16 and packing.bf16 is not None:
        raise ConfigError(
            f"train.precision: {run.llm.name} ({config.model_type}) does not run with all its weights in bfloat16 "
            f"under transformers {transformers.__version__} ({packing.bf16}); set it to fp32"
        )
    return packing


@contextmanager
def partition_while_loading(zero3: dict[str, Any] | None) -> Iterator[None]:
    """transformers' from_pretrained partitions weights over the ranks in here; `zero3` None changes nothing.

    Only for from_pretrained: models that are initialised in here keep the values torch gave their modules at birth.
    """
    if zero3 is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(zero3)  # transformers holds a weak reference to it
    yield
    del keep_alive


def take_buffers_of_rank_0(model: nn.Module) -> None:
    """Under ZeRO-3 from_pretrained gives rank 0 alone the buffers of the file (a batch norm's statistics); the other
    ranks keep those of a new model (seen with transformers 4.57). Collective."""
    buffers = dict(model.named_buffers())
    values = distributed.broadcast_object({n: b.cpu() for n, b in buffers.items()} if distributed.is_main() else None)
    for name, buffer in buffers.items():
        buffer.copy_(values[name])


def load_exported(run: RunConfig, zero3: dict[str, Any] | None) -> ParGoForConditionalGeneration:
    """All weights of an exported folder, strictly; the run file must describe the same model.

    Every file is compared with the folder's hashes first, where it has them; the ranks divide the work.
    """
    folder, rank, ranks = Path(run.start_from), distributed.rank(), distributed.world_size()
    distributed.together(lambda: check_hashes(folder, rank, ranks))
    check_start(run)
    with partition_while_loading(zero3), reading_weights("start_from", str(folder)):
        model, info = ParGoForConditionalGeneration.from_pretrained(
            run.start_from, dtype=dtype_of(run), output_loading_info=True
        )
    if zero3 is not None:
        take_buffers_of_rank_0(model)
    faults = {kind: info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    if faults:
        raise ConfigError(f"start_from: {run.start_from} does not hold this model: {faults}")
    return model


def assemble_parts(
    run: RunConfig, processor: ParGoProcessor, zero3: dict[str, Any] | None
) -> ParGoForConditionalGeneration:
    """Pretrained vision encoder and LLM with a new projector between them."""
    config = model_config(run, processor.image_token_id, offline=False)
    llm = load_llm(run, config.text_config, zero3)
    config.projector_config.output_std = embedding_std(llm)
    return ParGoForConditionalGeneration(config, vision=load_vision(run, config.vision_config), llm=llm)


@contextmanager
def reading_weights(what: str, name: str) -> Iterator[None]:
    """In here faults of weight files become a ConfigError: a folder that lacks them, or damaged ones, will not heal."""
    try:
        yield
    except SafetensorError as error:
        raise ConfigError(f"{what}: the weights of {name} are damaged ({error}); fetch or export them again") from error
    except OSError as error:
        if error.errno is not None or not Path(name).is_dir():  # the machine's or the network's
            raise
        raise ConfigError(f"{what}: {name} holds no weights ({' '.join(str(error).split())[:300]})") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"{what}: config.json and weights of {name} do not belong together ({said})") from error


def load_llm(run: RunConfig, config: PretrainedConfig, zero3: dict[str, Any] | None) -> nn.Module:
    """The causal LM with published weights, every one of them found, or with random ones where the run file says so."""
    if run.llm.weights == "random":
        return AutoModelForCausalLM.from_config(config)
    with partition_while_loading(zero3), reading_weights("llm.name", run.llm.name):
        llm, info = AutoModelForCausalLM.from_pretrained(
            run.llm.name, revision=run.llm.revision, dtype=dtype_of(run), output_loading_info=True
        )
    if zero3 is not None:
        take_buffers_of_rank_0(llm)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ConfigError(
            f"llm.name: {run.llm.name} lacks weights: missing {sorted(info['missing_keys'])[:5]}, "
            f"of another shape {sorted(map(str, info['mismatched_keys']))[:5]}"
        )
    return llm


def load_vision(run: RunConfig, config: ParGoVisionConfig) -> VisionTower:
    """The encoder with local weights, published ones, or random ones, as `vision.weights` says."""
    weights = run.vision.weights
    if weights == "random":
        return VisionTower(config)
    if weights is None:
        with reading_weights("vision.name", run.vision.name):
            return load_pretrained_vision(config, run.vision.name, run.vision.revision)
    path = Path(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ConfigError(f"vision.weights: {weights} is no safetensors file; nothing else is read")
    tower = VisionTower(config)
    with reading_weights("vision.weights", weights):
        tower.load_backbone(load_file(path))
    return tower


def embedding_std(llm: nn.Module) -> float:
    """Standard deviation of the LLM's word embeddings; visual tokens start at the same scale."""
    weight = llm.get_input_embeddings().weight
    with whole_weight(weight):
        return float(weight.detach().float().std())


def model_fingerprint(model: ParGoForConditionalGeneration) -> str:
    """Hash of the model's configuration and of every parameter's name, shape and whether it trains."""
    left_out = ("transformers_version", "_name_or_path", "auto_map")
    config = {key: value for key, value in model.config.to_dict().items() if key not in left_out}
    # Checkpoints from before an option hold no word of it and must still resume.
    config["projector_config"] = {
        key: value
        for key, value in config["projector_config"].items()
        if key not in LATER_OPTIONS or value != LATER_OPTIONS[key]
    }
    parameters = [
        (name, list(getattr(p, "ds_shape", p.shape)), p.requires_grad) for name, p in model.named_parameters()
    ]
    body = json.dumps([config, parameters], sort_keys=True, default=str)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def frozen_sources(run: RunConfig) -> dict[str, Any]:
    """Where the weights come from that a checkpoint does not hold."""
    return {
        "start_from": run.start_from,
        "vision": {"name": run.vision.name, "revision": run.vision.revision, "weights": run.vision.weights},
        "llm": {"name": run.llm.name, "revision": run.llm.revision},
    }


def flop_model(model: ParGoForConditionalGeneration) -> FlopModel:
    """FLOP counts of this model, from a copy on the meta device."""
    with torch.device("meta"):
        copy = ParGoForConditionalGeneration(model.config)
    return FlopModel.of(copy, model.config.vision_config.image_size)


# Data


def build_loaders(run: RunConfig, processor: ParGoProcessor, packing: Packing) -> tuple[Any, list[Batch]]:
    """The training loader and this rank's held-out packs, planned for the LLM's road of packed rows."""
    from pargo_ds.data.held_out import held_out_batches
    from pargo_ds.data.loader import PackLoader

    options = {
        "data": run.data,
        "batch": run.batch,
        "processor": processor,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "cache_dir": run.run_dir / "cache",
        "run_name": run.name,
        "padded_rows": packing.road == "rows",
    }
    loader = PackLoader(seed=run.seed, nodes=num_nodes(), workers=run.data.workers, **options)
    held_out = held_out_batches(run.data.held_out, packs=run.held_out.packs, **options) if run.data.held_out else []
    return loader, held_out


def num_nodes() -> int:
    """Machines of this run, as the launcher numbers their ranks; 1 when they do not have as many ranks each.

    Rank 0 decides for all: ranks that divide the stream differently would lose and repeat data.
    """
    ranks = distributed.world_size()
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ranks)
    return distributed.broadcast_object(ranks // on_this_node if ranks % on_this_node == 0 else 1)
