"""A tiny copy of a run, with its options, tokenizer and settings, and small models of the same
families.

Its models are written into a folder, like published models or an exported model, so that all code
that reads a run (assembly, freezing, zero-to-hf) can use the copy.
"""

from __future__ import annotations

import copy
import json
import shutil
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
)

from pargo_ds import assembly
from pargo_ds.config import RunConfig, parse_config
from pargo_ds.convert.zero.published_files import fetch_file
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoProcessor,
    ParGoVisionConfig,
    VisionTower,
    vision_config_from_timm,
    vision_config_from_transformers,
)
from pargo_ds.model.encoder_trial import TINY_ENCODER, tiny_encoder
from pargo_ds.model.tiny_llm import WIDTH, tiny_config

ROOM = 2048
"""Number of positions of the tiny LLM, enough for a prompt with its image."""
VIT, CNN = ("test_vit", 16), ("test_resnet", 32)
"""Tiny networks that timm has for tests, and the side of one of their patches in pixels."""
BLOCKS = TINY_ENCODER["num_hidden_layers"]
GENERATION = "generation_config.json"


def tiny_run(run: RunConfig, processor: ParGoProcessor, folder: Path) -> RunConfig:
    """Write the models of a tiny copy of `run` into `folder`, and return the copy.

    Raises any exception with which a model family refuses small sizes.
    """
    config = copy.deepcopy(run_config(run, processor))
    config.text_config = tiny_text(config.text_config)
    config.vision_config, vision = tiny_vision(config.vision_config, folder)
    small = config.projector_config.tiny()
    body = run.model_dump(mode="json")
    body["output"], body["attention"] = str(folder / "runs"), {}
    body["projector"] = {key: getattr(small, key) for key in body["projector"]}
    body["vision"] |= vision | {
        "image_size": config.vision_config.image_size,
        "revision": None,
        "architecture": None,
    }
    if run.start_from is None:
        write_llm(config.text_config, run, processor, folder / "llm")
        body["llm"] |= {
            "name": str(folder / "llm"),
            "weights": "pretrained",
            "revision": None,
            "architecture": None,
        }
    else:
        config.projector_config = small
        write_start(config, run, processor, folder / "start")
        body["start_from"] = str(folder / "start")
    return parse_config(body, source="a tiny copy of the run")


def run_config(run: RunConfig, processor: ParGoProcessor) -> ParGoConfig:
    """Return the configuration of the whole model that a run trains."""
    if run.start_from is not None:
        return ParGoConfig.from_pretrained(run.start_from)
    return assembly.model_config(run, processor.image_token_id, offline=False)


def tiny_text(config: PretrainedConfig) -> PretrainedConfig:
    """Return a small configuration of the LLM with its whole vocabulary and room for a prompt."""
    return tiny_config(config, (), vocab_size=config.vocab_size, room=ROOM)


def tiny_vision(
    config: ParGoVisionConfig, folder: Path
) -> tuple[ParGoVisionConfig, dict[str, Any]]:
    """Return a small configuration of the encoder and the changes of the run file for it. Weights
    are written into `folder`.

    The small encoder has the same number of patches per image as the run's encoder, so that it fits
    the token counts of the projector.
    """
    chosen = {name: getattr(config, name) for name in ("feature_norm", "image_mean", "image_std")}
    chosen["feature_layer"] = max(config.feature_layer, -BLOCKS)
    changes: dict[str, Any] = {"feature_layer": chosen["feature_layer"], "weights": None}
    if config.library == "timm":
        with torch.device("meta"):
            name, pixels = VIT if hasattr(VisionTower(config).backbone, "blocks") else CNN
        small = vision_config_from_timm(name, pixels * isqrt(config.num_patches), **chosen)
        weights = folder / "vision.safetensors"
        save_file(VisionTower(small).backbone.state_dict(), weights)
        return small, changes | {"name": name, "weights": str(weights)}
    name = str(folder / "vision")
    assert config.hf_config is not None  # ParGoVisionConfig has one for this library
    inner = AutoConfig.for_model(**tiny_encoder(config.hf_config))
    AutoModel.from_config(inner).save_pretrained(name)
    statistics = {"image_mean": config.image_mean, "image_std": config.image_std}
    (folder / "vision/preprocessor_config.json").write_text(json.dumps(statistics))
    chosen |= {"name": name, "image_size": config.image_size, "num_patches": config.num_patches}
    return vision_config_from_transformers(inner, **chosen), changes | {"name": name}


def write_llm(
    config: PretrainedConfig, run: RunConfig, processor: ParGoProcessor, folder: Path
) -> None:
    """Write a tiny LLM as on the hub, with the run's tokenizer and the settings of the run's
    LLM.
    """
    llm = AutoModelForCausalLM.from_config(config).to(assembly.dtype_of(run))
    stir(llm)
    llm.generation_config = GenerationConfig()
    llm.save_pretrained(folder)
    (folder / GENERATION).unlink()
    own = None
    if run.llm.weights == "pretrained":
        own = fetch_file(run.llm.name, run.llm.revision, GENERATION)
    if own is not None:
        shutil.copyfile(own, folder / GENERATION)
    processor.tokenizer.save_pretrained(folder)


@torch.no_grad()
def stir(llm: nn.Module) -> None:
    """Give an LLM weights that are as large as trained ones, so that attention depends on contents
    and positions.
    """
    for parameter in llm.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=WIDTH**-0.5)


def write_start(
    config: ParGoConfig, run: RunConfig, processor: ParGoProcessor, folder: Path
) -> None:
    """Write an exported model to start from, with the processor and settings of the run."""
    model = ParGoForConditionalGeneration(config)
    model.to(assembly.dtype_of(run))  # type: ignore[arg-type]  # its decorator hides self
    stir(model.llm)
    model.save_pretrained(folder)
    small = copy.deepcopy(processor)  # a shallow copy would share the image processor
    small.image_size = config.vision_config.image_size
    small.save_pretrained(folder)
    assert run.start_from is not None
    own = Path(run.start_from) / GENERATION
    if own.is_file():
        shutil.copyfile(own, folder / GENERATION)
