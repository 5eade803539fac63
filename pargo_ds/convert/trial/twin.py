"""A tiny run of the same kind: the options of a run, its tokenizer and settings, and small parts of the same families.

What it trains from lies in one folder, as published parts or an exported model do, so that everything that reads a run
(assembly, freezing, zero-to-hf) takes it like any other.
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
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from pargo_ds.config import RunConfig, parse_config
from pargo_ds.convert.zero.published_files import fetch_file
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoProcessor,
    ParGoProjectorConfig,
    ParGoVisionConfig,
    VisionTower,
    vision_config_from_timm,
    vision_config_from_transformers,
)
from pargo_ds.model.encoder_trial import TINY_ENCODER, tiny_encoder
from pargo_ds.model.tiny_llm import WIDTH, tiny_config
from pargo_ds.training import assembly

PROJECTOR = {"width": 16, "heads": 2}
LAYERS = 2
"""Of the projector at most."""
ROOM = 2048
"""Positions of the tiny LLM: a prompt with its picture."""
VIT, CNN = ("test_vit", 16), ("test_resnet", 32)
"""Tiny networks that timm has for tests, and the pixels of one of their patches."""
BLOCKS = TINY_ENCODER["num_hidden_layers"]
GENERATION = "generation_config.json"


def tiny_run(run: RunConfig, processor: ParGoProcessor, folder: Path) -> RunConfig:
    """Write the parts of a tiny run of the same kind into `folder` and return it.

    Raises whatever a family's configuration says against small sizes.
    """
    config = copy.deepcopy(run_config(run, processor))
    config.text_config = tiny_text(config.text_config)
    config.vision_config, vision = tiny_vision(config.vision_config, folder)
    small = PROJECTOR | {"layers": min(LAYERS, run.projector.layers)}
    body = run.model_dump(mode="json")
    body["output"], body["attention"] = str(folder / "runs"), {}
    body["projector"] |= small
    body["vision"] |= vision | {"image_size": config.vision_config.image_size, "revision": None, "architecture": None}
    if run.start_from is None:
        write_llm(config.text_config, run, processor, folder / "llm")
        body["llm"] |= {"name": str(folder / "llm"), "weights": "pretrained", "revision": None, "architecture": None}
    else:
        config.projector_config = ParGoProjectorConfig(**config.projector_config.to_dict() | small | {"ffn_width": 32})
        write_start(config, run, processor, folder / "start")
        body["start_from"] = str(folder / "start")
    return parse_config(body, source="a tiny copy of the run")


def run_config(run: RunConfig, processor: ParGoProcessor) -> ParGoConfig:
    """The configuration of the whole model that a run trains."""
    if run.start_from is not None:
        return ParGoConfig.from_pretrained(run.start_from)
    return assembly.model_config(run, processor.image_token_id, offline=False)


def tiny_text(config: PretrainedConfig) -> PretrainedConfig:
    """The LLM's configuration, small but for its vocabulary, with room for a prompt."""
    return tiny_config(config, (), vocab_size=config.vocab_size, room=ROOM)


def tiny_vision(config: ParGoVisionConfig, folder: Path) -> tuple[ParGoVisionConfig, dict[str, Any]]:
    """The encoder's configuration, small, and what it changes in the run file; weights are written into `folder`.

    It gives as many patches per picture as the run's encoder, so that all the projector's token counts go with it.
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
    inner = AutoConfig.for_model(**tiny_encoder(config.hf_config))
    AutoModel.from_config(inner).save_pretrained(name)
    statistics = {"image_mean": config.image_mean, "image_std": config.image_std}
    (folder / "vision/preprocessor_config.json").write_text(json.dumps(statistics))
    chosen |= {"name": name, "image_size": config.image_size, "num_patches": config.num_patches}
    return vision_config_from_transformers(inner, **chosen), changes | {"name": name}


def write_llm(config: PretrainedConfig, run: RunConfig, processor: ParGoProcessor, folder: Path) -> None:
    """An LLM as the hub holds it, with the run's tokenizer and the settings that its LLM brings."""
    llm = AutoModelForCausalLM.from_config(config).to(assembly.dtype_of(run))
    stir(llm)
    llm.generation_config = GenerationConfig()
    llm.save_pretrained(folder)
    (folder / GENERATION).unlink()
    own = fetch_file(run.llm.name, run.llm.revision, GENERATION) if run.llm.weights == "pretrained" else None
    if own is not None:
        shutil.copyfile(own, folder / GENERATION)
    processor.tokenizer.save_pretrained(folder)


@torch.no_grad()
def stir(llm: nn.Module) -> None:
    """Weights as large as trained ones, so that attention depends on what it looks at and where that stands."""
    for parameter in llm.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=WIDTH**-0.5)


def write_start(config: ParGoConfig, run: RunConfig, processor: ParGoProcessor, folder: Path) -> None:
    """An exported model to start from, with the processor and settings of the run's."""
    model = ParGoForConditionalGeneration(config).to(assembly.dtype_of(run))
    stir(model.llm)
    model.save_pretrained(folder)
    small = copy.deepcopy(processor)  # the pixels are its image processor's, which a shallow copy would share
    small.image_size = config.vision_config.image_size
    small.save_pretrained(folder)
    own = Path(run.start_from) / GENERATION
    if own.is_file():
        shutil.copyfile(own, folder / GENERATION)
