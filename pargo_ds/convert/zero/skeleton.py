"""The model of a run without its values: names, shapes, types, what trains, configuration and generation settings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.model import ParGoConfig, ParGoForConditionalGeneration, ParGoProcessor, VisionTower
from pargo_ds.training import assembly


def build_skeleton(run: RunConfig, processor: ParGoProcessor) -> ParGoForConditionalGeneration:
    """The model on the meta device as assembly.build_model would give it, configuration and precision included.

    `projector_config.output_std` is measured on the LLM's embedding, so it stays at its default here unless the run
    starts from an exported folder. Raises ConfigError when a configuration cannot be had.
    """
    dtype = assembly.dtype_of(run)
    if run.start_from is not None:
        model = _exported(run.start_from, dtype)
    else:
        config = assembly.model_config(run, processor.image_token_id, offline=False)
        # from_config writes into the configuration that it is given; a pretrained LLM brings one of its own.
        text = config.text_config if run.llm.weights == "random" else copy.deepcopy(config.text_config)
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(text)
            if run.llm.weights != "random":
                _take_generation_config(llm, run.llm.name, run.llm.revision)
            model = ParGoForConditionalGeneration(config, vision=VisionTower(config.vision_config), llm=llm)
    assembly.cast_as_loaded(model, dtype)
    return model


def _exported(folder: str, dtype: torch.dtype) -> ParGoForConditionalGeneration:
    try:
        config = ParGoConfig.from_pretrained(folder)
    except OSError as error:
        raise ConfigError(f"start_from: {folder} has no configuration of a model ({error})") from error
    # What from_pretrained(dtype=...) writes there.
    parts: list[PretrainedConfig] = [config, *(getattr(config, name) for name in config.sub_configs)]
    for part in parts:
        part.dtype = dtype
    with torch.device("meta"), _default_dtype(dtype):
        model = ParGoForConditionalGeneration(config)
    _take_generation_config(model, folder, None)
    return model


def _take_generation_config(model: torch.nn.Module, name: str, revision: str | None) -> None:
    try:
        model.generation_config = GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:
        return  # the model has made one from its configuration, as it does in from_pretrained


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
