"""The configurations of the models of a run, from the run file and the published files that it
names. No weights are loaded.
"""

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

from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError, OtherRankError
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoVisionConfig,
    ProjectorConfig,
    projector_config,
)
from pargo_ds.model.encoder_configs import (
    vision_config_from_timm,
    vision_config_from_transformers,
)


@contextmanager
def describing(what: str) -> Iterator[None]:
    """Within this context every exception becomes a ConfigError of one sentence, because only the
    run file and published files decide, so that another start would fail in the same way.

    Errors of the machine (a disk, the network, memory) are not changed.
    """
    try:
        yield
    except (ConfigError, OSError, MemoryError, OtherRankError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        if len(said) > 500:
            said = said[:500] + "..."
        if not isinstance(error, ValueError):
            said = f"{type(error).__name__}: {said}"
        raise ConfigError(f"{what}: {said}") from error


def described_config(what: str, architecture: dict[str, Any]) -> PretrainedConfig:
    """Return the configuration that the run file's `architecture` describes.

    Raises ConfigError for an unknown model family or an unknown key.
    """
    family = architecture.get("model_type")
    if family not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(family), CONFIG_MAPPING, n=3)
        hint = ", such as llama"
        if near:
            hint = f"; did you mean {', '.join(near)}?"
        raise ConfigError(
            f"{what}.architecture.model_type is {family!r}, expected a family of transformers "
            f"{transformers.__version__}{hint}"
        )
    with describing(f"{what}.architecture"):
        config = AutoConfig.for_model(**architecture)
    known = set(type(config).attribute_map)
    for cls in type(config).__mro__[:-1]:
        made_by = cls.__init__  # type: ignore[misc]  # only its arguments are read
        known |= inspect.signature(made_by).parameters.keys()
    for key in architecture.keys() - known:  # transformers would keep it and never use it
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.85):
            raise ConfigError(
                f"{what}.architecture.{key}: unknown to {family}; did you mean {near[0]}?"
            )
    return config


def published_config(
    what: str, name: str, revision: str | None, architecture: dict | None
) -> PretrainedConfig:
    """Return the configuration in a folder or on the hub, compared with the run file's
    `architecture`.
    """
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
    found = config
    if what == "vision":
        found = getattr(config, "vision_config", config)
    wrong = []
    for key, said in (architecture or {}).items():
        there = getattr(found, key, said)
        if key != "model_type" and there != said:
            wrong.append(f"{key} is {there!r} there, {said!r} in the run file")
    if wrong:
        raise ConfigError(f"{what}.architecture does not describe {name}: {', '.join(wrong)}")
    return config


def text_config(run: RunConfig, offline: bool) -> PretrainedConfig:
    """Return the configuration of the LLM. With `offline`, and for random weights, it comes from
    the run file's `architecture`.
    """
    llm = run.llm
    if llm.architecture is not None and (offline or llm.weights == "random"):
        return described_config("llm", llm.architecture)
    return published_config("llm", llm.name, llm.revision, llm.architecture)


def vision_config(run: RunConfig, offline: bool) -> ParGoVisionConfig:
    """Return the configuration of the encoder. For timm no network is needed."""
    vision = run.vision
    chosen: dict[str, Any] = {
        "feature_layer": vision.feature_layer,
        "feature_norm": vision.feature_norm,
    }
    if vision.library == "timm":
        with describing("vision"):
            return vision_config_from_timm(vision.name, vision.image_size, **chosen)
    if vision.architecture is not None and (offline or vision.weights == "random"):
        source = described_config("vision", vision.architecture)
    else:
        source = published_config("vision", vision.name, vision.revision, vision.architecture)
        chosen |= pixel_statistics(vision.name, vision.revision)
    with describing("vision"):
        return vision_config_from_transformers(
            source, image_size=vision.image_size, name=vision.name, **chosen
        )


def pixel_statistics(name: str, revision: str | None) -> dict[str, list[float]]:
    """Return mean and standard deviation of pixels from the encoder's preprocessor_config.json."""
    published, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
    return {key: published[key] for key in ("image_mean", "image_std") if key in published}


def model_config(run: RunConfig, image_token_id: int | None, offline: bool) -> ParGoConfig:
    """Return the configuration of the whole model. In a dry run `image_token_id` is None, and the
    first id after the vocabulary is used.
    """
    text = text_config(run, offline)
    if image_token_id is None:
        image_token_id = text.vocab_size
    return ParGoConfig(
        vision_config=vision_config(run, offline),
        text_config=text,
        projector_config=run_projector(run),
        image_token_id=image_token_id,
    )


def run_projector(run: RunConfig) -> ProjectorConfig:
    """Return the configuration of the run's projector. Raises ConfigError."""
    with describing("projector"):
        return projector_config(run.projector.model_dump())


def visual_tokens(run: RunConfig) -> int:
    """Return the number of visual tokens of one image in this run.

    The configuration of the vision encoder is read only if the number depends on its patches.
    Raises ConfigError when the projector does not fit the patches, or when an image does not fit
    into a pack.
    """
    projector = run_projector(run)
    if projector.follows_patches:
        patches = vision_config(run, offline=False).num_patches
        with describing("projector"):
            count = projector.visual_tokens(patches)
    else:
        count = projector.tokens
    run.check_pack(count)
    return count


def build_meta_model(run: RunConfig) -> ParGoForConditionalGeneration:
    """Return the model on the meta device, without weights."""
    config = model_config(run, None, offline=True)
    with describing("the model of this run"), torch.device("meta"):
        model = ParGoForConditionalGeneration(config)
    run.check_pack(config.visual_tokens)
    return model


def llm_config(run: RunConfig) -> PretrainedConfig:
    """Return the configuration of the run's LLM, which may come from `start_from`."""
    if run.start_from is not None:
        return ParGoConfig.from_pretrained(run.start_from).text_config
    return text_config(run, offline=False)


def check_start(run: RunConfig) -> None:
    """Raise ConfigError unless the run file describes the model in `start_from`."""
    assert run.start_from is not None
    held = ParGoConfig.from_pretrained(run.start_from)
    sides: dict[str, tuple[Any, Any]] = {}
    for key, here in run.projector:
        sides[f"projector.{key}"] = getattr(held.projector_config, key, None), here
    for key in ("name", "image_size", "feature_layer"):
        sides[f"vision.{key}"] = getattr(held.vision_config, key), getattr(run.vision, key)
    wrong = []
    for key, (there, here) in sides.items():
        if there != here:
            wrong.append(f"{key} is {there!r} there, {here!r} in the run file")
    if wrong:
        raise ConfigError(
            f"start_from: {run.start_from} holds another model: {', '.join(wrong)}. Say the same in the run file"
        )
