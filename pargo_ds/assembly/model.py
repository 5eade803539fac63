"""Build the model of a run file with its weights, and prove that its LLM keeps packed samples
apart.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from pargo_ds import distributed
from pargo_ds.assembly.configs import llm_config
from pargo_ds.assembly.weights import assemble_parts, dtype_of, load_exported
from pargo_ds.assembly.zero import zero_stage
from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor
from pargo_ds.model.packing import Packing, PackingError, prove_packing


def build_model(
    run: RunConfig, processor: ParGoProcessor, settings: dict[str, Any] | None
) -> ParGoForConditionalGeneration:
    """Return the model with its weights; no part is frozen yet. `settings` are those of DeepSpeed;
    None builds the model without DeepSpeed.

    Raises ConfigError when weights and run file do not belong together.
    """
    prove_llm(run, llm_config(run))  # before weights are loaded, which may take long
    zero3 = None
    if settings is not None and zero_stage(settings) == 3:
        zero3 = settings
    model = load_model(run, processor, zero3)
    model.set_attention(**run.attention.model_dump())
    torch.manual_seed(run.seed + 1 + distributed.rank())  # dropout differs by rank
    return model


def load_model(
    run: RunConfig, processor: ParGoProcessor, zero3: dict[str, Any] | None
) -> ParGoForConditionalGeneration:
    """Return the model with its weights in the run's precision. Raises as build_model does."""
    torch.manual_seed(run.seed)  # every rank draws the same projector
    if run.start_from is not None:
        model = load_exported(run, zero3)
    else:
        model = assemble_parts(run, processor, zero3)
    cast_as_loaded(model, dtype_of(run))
    return model


def cast_as_loaded(model: ParGoForConditionalGeneration, dtype: torch.dtype) -> None:
    """Cast a model in place to the types that from_pretrained would give an export of it.

    Some buffers stay in fp32 whatever the type of the weights is. With rotary frequencies in bf16
    the trained model would differ from the exported one: at position 1,000 they are wrong by 0.44
    rad (measured).
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            loaded = dict(ParGoForConditionalGeneration(model.config).named_buffers())
    finally:
        torch.set_default_dtype(before)
    computed = {n: buffer for n, buffer in model.named_buffers() if buffer.is_floating_point()}
    model.to(dtype)  # type: ignore[arg-type]  # its decorator hides self
    for name, buffer in computed.items():
        module, _, key = name.rpartition(".")
        if name in loaded and loaded[name].dtype != dtype:
            setattr(model.get_submodule(module), key, buffer.to(loaded[name].dtype))


def prove_llm(run: RunConfig, config: PretrainedConfig) -> Packing:
    """Find out on a tiny copy of the LLM how it keeps packed samples apart.

    Raises ConfigError when it cannot, when a frozen LLM would not compute as in inference, or when
    the LLM does not run in the run's precision.
    """
    if quantised := getattr(config, "quantization_config", None):
        if isinstance(quantised, dict):
            method = quantised.get("quant_method")
        else:
            method = quantised.quant_method
        raise ConfigError(
            f"llm.name: the weights of {run.llm.name} are quantised ({method}): they do not train, and an export would "
            "be another model. Name the release in bfloat16, or write one: load it with transformers and "
            "quantization_config=...(dequantize=True), then save_pretrained"
        )
    try:
        packing = prove_packing(config, run.batch.tokens_per_pack, run.batch.tokens_per_row)
    except PackingError as error:
        raise ConfigError(f"llm.name: {run.llm.name}: {error}") from error
    if packing.road == "rows" and run.batch.packs_per_forward > 1:
        raise ConfigError(
            f"batch.packs_per_forward: {run.llm.name} ({config.model_type}) takes each sample in a "
            "row of its own, padded to the longest, so packs gain nothing together; set it to 1"
        )
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
