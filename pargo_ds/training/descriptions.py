"""What a run file and the published descriptions that it names say: configurations, before any weights."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from pargo_ds import distributed
from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.model import ParGoConfig, ParGoForConditionalGeneration, ParGoVisionConfig
from pargo_ds.model.vision import vision_config_from_timm, vision_config_from_transformers


@contextmanager
def describing(what: str) -> Iterator[None]:
    """In here the run file and published descriptions alone decide: what fails now would fail again.

    Errors of any class become a ConfigError of one sentence, but those of the machine (a disk, the network, memory).
    """
    try:
        yield
    except (ConfigError, OSError, MemoryError, distributed.OtherRankError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"{what}: {kind}{said[:500]}{'...' if len(said) > 500 else ''}") from error


def described_config(what: str, architecture: dict[str, Any]) -> PretrainedConfig:
    """The configuration of the run file's architecture numbers. Raises ConfigError for families and numbers unknown."""
    family = architecture.get("model_type")
    if family not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(family), CONFIG_MAPPING, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ", such as llama"
        raise ConfigError(
            f"{what}.architecture.model_type is {family!r}, expected a family of transformers "
            f"{transformers.__version__}{hint}"
        )
    with describing(f"{what}.architecture"):
        config = AutoConfig.for_model(**architecture)
    known = set(type(config).attribute_map)
    for cls in type(config).__mro__[:-1]:
        known |= inspect.signature(cls.__init__).parameters.keys()
    for key in architecture.keys() - known:  # kept by transformers, and never looked at
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.85):
            raise ConfigError(f"{what}.architecture.{key}: unknown to {family}; did you mean {near[0]}?")
    return config


def published_config(what: str, name: str, revision: str | None, architecture: dict | None) -> PretrainedConfig:
    """The configuration that a hub name or folder publishes, checked against the run file's architecture numbers."""
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        raise ConfigError(
            f"{what}.name: {name} is neither a folder with a config.json nor a reachable hub name ({error}); "
            "on a machine without network fetch it first with tools/fetch_models.py"
        ) from error
    except Exception as error:  # families check their values in their own ways
        raise ConfigError(
            f"{what}.name: transformers {transformers.__version__} does not take the config.json of {name} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:500]})"
        ) from error
    found = getattr(config, "vision_config", config) if what == "vision" else config
    wrong = {
        key: (value, getattr(found, key))
        for key, value in (architecture or {}).items()
        if key != "model_type" and hasattr(found, key) and getattr(found, key) != value
    }
    if wrong:
        shown = ", ".join(f"{key} is {real!r} there, {said!r} in the run file" for key, (said, real) in wrong.items())
        raise ConfigError(f"{what}.architecture does not describe {name}: {shown}")
    return config


def text_config(run: RunConfig, offline: bool) -> PretrainedConfig:
    """The LLM's configuration: `offline` (or random weights) takes the run file's architecture numbers."""
    llm = run.llm
    if llm.architecture is not None and (offline or llm.weights == "random"):
        return described_config("llm", llm.architecture)
    return published_config("llm", llm.name, llm.revision, llm.architecture)


def vision_config(run: RunConfig, offline: bool) -> ParGoVisionConfig:
    """The encoder's configuration; timm's come from timm itself, without network."""
    vision = run.vision
    chosen = {"feature_layer": vision.feature_layer, "feature_norm": vision.feature_norm}
    if vision.library == "timm":
        with describing("vision"):
            return vision_config_from_timm(vision.name, vision.image_size, **chosen)
    if vision.architecture is not None and (offline or vision.weights == "random"):
        source = described_config("vision", vision.architecture)
    else:
        source = published_config("vision", vision.name, vision.revision, vision.architecture)
        chosen |= pixel_statistics(vision.name, vision.revision)
    with describing("vision"):
        return vision_config_from_transformers(source, image_size=vision.image_size, name=vision.name, **chosen)


def pixel_statistics(name: str, revision: str | None) -> dict[str, list[float]]:
    """Mean and deviation from the encoder's own preprocessor_config.json."""
    published, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
    return {key: published[key] for key in ("image_mean", "image_std") if key in published}


def model_config(run: RunConfig, image_token_id: int | None, offline: bool) -> ParGoConfig:
    """Configuration of the whole model; `image_token_id` None (dry run): the first id after the vocabulary."""
    text = text_config(run, offline)
    projector = run.projector.model_dump()
    token = text.vocab_size if image_token_id is None else image_token_id
    return ParGoConfig(
        vision_config=vision_config(run, offline),
        text_config=text,
        projector_config=projector,
        image_token_id=token,
    )


def build_meta_model(run: RunConfig) -> ParGoForConditionalGeneration:
    """The model without weights, on the meta device."""
    config = model_config(run, None, offline=True)
    with describing("the model of this run"), torch.device("meta"):
        return ParGoForConditionalGeneration(config)


def llm_config(run: RunConfig) -> PretrainedConfig:
    """The configuration of the LLM that the run will train or read, from wherever its weights come."""
    if run.start_from is not None:
        return ParGoConfig.from_pretrained(run.start_from).text_config
    return text_config(run, offline=False)


def check_start(run: RunConfig) -> None:
    """ConfigError unless the model in `start_from` is the one that the run file describes."""
    held = ParGoConfig.from_pretrained(run.start_from)
    sides = {f"projector.{key}": (getattr(held.projector_config, key), here) for key, here in run.projector}
    for key in ("name", "image_size", "feature_layer"):
        sides[f"vision.{key}"] = (getattr(held.vision_config, key), getattr(run.vision, key))
    wrong = [
        f"{key} is {there!r} there, {here!r} in the run file" for key, (there, here) in sides.items() if there != here
    ]
    if wrong:
        raise ConfigError(
            f"start_from: {run.start_from} holds another model: {', '.join(wrong)}. Say the same in the run file"
        )
