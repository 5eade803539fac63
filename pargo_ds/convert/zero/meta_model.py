"""The model of a run on the meta device: it has names, shapes, types, configuration and generation
settings, but no values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from pargo_ds import assembly
from pargo_ds.checkpoint.manifest import Manifest
from pargo_ds.config import RunConfig
from pargo_ds.errors import CheckpointError, ConfigError
from pargo_ds.model import ParGoConfig, ParGoForConditionalGeneration, ParGoProcessor, VisionTower


def described_config(
    run: RunConfig, manifest: Manifest | None, processor: ParGoProcessor
) -> ParGoConfig:
    """Return the configuration of the model of a checkpoint, which is in its manifest.

    A checkpoint of DeepSpeed alone has no manifest; its configuration is made as the run made it,
    except for `projector_config.output_std`. That is computed from the LLM's embedding, so it keeps
    its default here unless the run starts from an exported folder.

    Raises ConfigError when a configuration is not available, and CheckpointError when the tokenizer
    is not that of the run.
    """
    if manifest is not None:
        config = ParGoConfig.from_dict(manifest.model_config)
        if config.image_token_id != processor.image_token_id:
            raise CheckpointError(
                f"the tokenizer that the run names gives the image token the id {processor.image_token_id}, and the "
                f"model was trained with {config.image_token_id}; put back the tokenizer of {run.llm.name}"
            )
        return config
    if run.start_from is None:
        return assembly.model_config(run, processor.image_token_id, offline=False)
    try:
        config = ParGoConfig.from_pretrained(run.start_from)
    except OSError as error:
        raise ConfigError(
            f"start_from: {run.start_from} has no configuration of a model ({error})"
        ) from error
    # from_pretrained(dtype=...) would set these fields.
    parts: list[PretrainedConfig] = [
        config,
        *(getattr(config, name) for name in config.sub_configs),
    ]
    for part in parts:
        part.dtype = assembly.dtype_of(run)
    return config


def build_meta_model(run: RunConfig, config: ParGoConfig) -> ParGoForConditionalGeneration:
    """Return the model of assembly.build_model, with its precision, on the meta device."""
    dtype = assembly.dtype_of(run)
    config = copy.deepcopy(config)  # from_config writes into the configuration that it is given
    if run.start_from is not None:
        with torch.device("meta"), _default_dtype(dtype):
            model = ParGoForConditionalGeneration(config)
        _take_generation_config(model, run.start_from, None)
    else:
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(config.text_config)
            if run.llm.weights != "random":
                _take_generation_config(llm, run.llm.name, run.llm.revision)
            model = ParGoForConditionalGeneration(
                config, vision=VisionTower(config.vision_config), llm=llm
            )
    assembly.cast_as_loaded(model, dtype)
    return model


def _take_generation_config(model: PreTrainedModel, name: str, revision: str | None) -> None:
    try:
        model.generation_config = GenerationConfig.from_pretrained(
            name,
            revision=revision,  # type: ignore[arg-type]  # None is the newest, as everywhere else
        )
    except OSError:
        return  # the model has generation settings from its configuration, as in from_pretrained


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
