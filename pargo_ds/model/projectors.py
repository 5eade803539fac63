"""The base classes of projectors and their configurations, and how a type is found.

A projector of type `x` is the file `projector_x.py` beside this one, with one subclass of
ProjectorConfig and one of Projector. Nothing else has to name it (CONTRIBUTING.md, "Adding a
projector").

Axis legend: patches `(images, patches, vision_dim)` in raster order; visual tokens `(images,
tokens, llm_dim)`. Sizes come from the configuration: under ZeRO-3 a partitioned weight has shape
(0,).
"""

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig

from .attention import AttentionChoice

PREFIX = "projector_"


class ProjectorConfig(PretrainedConfig):
    """The base class of the configurations of all projectors.

    A subclass sets `type` (the word of the run file, and the name of its file), `title` (what
    people call it), and either an attribute `tokens` or its own `visual_tokens`. It has an
    `__init__` even where it adds no option: transformers 5 writes one for a class without.

    Args:
        soft_prompt: each visual token has a learned part that no image changes, where it starts
            (ours; Lester et al., arXiv 2104.08691, for the word).
        patch_norm: a LayerNorm over the patches before all else (ours, docs/learning.md), which
            `train.projector.calibration_images` starts; False: the published form.
        norm_eps: epsilon of that LayerNorm, and of the projector's own where it says so.
        output_std: standard deviation of the visual tokens at the start; set it to that of the
            LLM's embeddings.

    Raises:
        ValueError: `type` is another one than the class's.
    """

    model_type = "pargo_projector"
    base_config_key = "projector_config"
    # No annotations here: transformers 5 would take them for fields.
    type = ""
    title = ""
    follows_patches = False  # whether the number of visual tokens depends on that of the patches

    def __init__(
        self,
        soft_prompt: bool = False,
        patch_norm: bool = True,
        norm_eps: float = 1e-5,
        output_std: float = 0.02,
        **kwargs: Any,
    ) -> None:
        cls = self.__class__
        asked = kwargs.pop("type", cls.type)
        super().__init__(**kwargs)
        if asked != cls.type:
            raise ValueError(f"{cls.__name__} is of type '{cls.type}', not '{asked}'")
        self.type = asked
        self.soft_prompt = soft_prompt
        self.patch_norm = patch_norm
        self.norm_eps = norm_eps
        self.output_std = output_std

    def visual_tokens(self, num_patches: int) -> int:
        """Return the number of tokens that one image of `num_patches` patches occupies in the LLM's
        sequence.

        Raises:
            ValueError: this projector does not support `num_patches` patches; the message names the
                nearest number that it supports.
        """
        return self.tokens

    def details(self) -> str:
        """Return the options in a few words, for people."""
        return ""

    def describe(self, num_patches: int) -> str:
        """Return one line for dry run, model card and report. Raises as `visual_tokens`."""
        details, tokens = self.details(), self.visual_tokens(num_patches)
        line = f"{self.title}: {tokens} visual tokens of {num_patches} patches"
        if not details:
            return line
        return f"{line} ({details})"

    def masks(self, num_patches: int) -> list[tuple[str, torch.Tensor, str]]:
        """Return the attention masks that are worth showing: (title, bool mask, meaning of the
        columns).
        """
        return []

    def regions(self, num_patches: int) -> dict[str, Sequence[Sequence[int]]]:
        """Return the patches of each token by a title, for projectors whose tokens belong to parts
        of the image.
        """
        return {}

    def tiny(self) -> "ProjectorConfig":
        """Return a small copy with the same visual tokens, for trials."""
        return self

    def changed(self, **values: Any) -> "ProjectorConfig":
        """Return a copy with other values."""
        other = copy.deepcopy(self)
        other.update(values)
        return other


class Projector(nn.Module):
    """Patches -> LayerNorm (`patch_norm`) -> `features` -> visual tokens (`output`).

    A subclass sets `config_class`, makes `self.output` with token_output.py, and defines
    `features`. The names `patch_norm`, `output` and `output.soft_prompt` are what calibration and
    the learning rates of a run go by. Every module that owns parameters has `reset_parameters`, so
    that transformers can draw them again.

    Raises:
        ValueError: sizes that do not fit the patches.
    """

    config_class: ClassVar[type[ProjectorConfig]]
    layer_classes: ClassVar[tuple[str, ...]] = ()
    """Names of its layers' classes, which no device map may split."""
    known: ClassVar[dict[str, type["Projector"]]] = {}

    output: nn.Module

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Projector.known[cls.config_class.type] = cls

    def __init__(self, config: Any, vision_dim: int, llm_dim: int, num_patches: int) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.num_tokens = config.visual_tokens(num_patches)
        self.patch_norm: nn.Module = nn.Identity()
        if config.patch_norm:
            self.patch_norm = nn.LayerNorm(vision_dim, config.norm_eps)

    def set_attention(self, choice: AttentionChoice) -> None:
        """Compute attention as `choice` says from now on; numbers stay the same."""
        for module in self.modules():
            if hasattr(module, "attention"):
                module.attention = choice  # type: ignore[assignment]  # nn.Module knows tensors only

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        """Turn normed patches `(images, patches, vision_dim)` into what `output` takes, `(images,
        tokens, in_features)`.
        """
        raise NotImplementedError

    def check_patches(self, patches: torch.Tensor) -> None:
        """Raise ValueError for another number of patches than the projector was built for."""
        if patches.shape[1] != self.num_patches:
            raise ValueError(
                f"the vision encoder gave {patches.shape[1]} patches per image but the projector "
                f"was built for {self.num_patches}: the image size differs from "
                "vision_config.image_size"
            )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        self.check_patches(patches)
        return self.output(self.features(self.patch_norm(patches)))


def projector_types() -> list[str]:
    """Return the types that `projector.type` may name: one for each file of this folder."""
    files = Path(__file__).parent.glob(f"{PREFIX}*.py")
    return sorted(path.stem.removeprefix(PREFIX) for path in files)


def projector_class(type: str) -> type[Projector]:
    """Return the projector of a type; its file is imported when it is asked for.

    Raises:
        ValueError: unknown type (the message lists the known ones).
    """
    if type not in projector_types():
        raise ValueError(
            f"unknown projector type '{type}': known types are {', '.join(projector_types())}; "
            "set projector.type to one of them"
        )
    importlib.import_module(f".{PREFIX}{type}", __package__)
    return Projector.known[type]


def projector_config(values: dict[str, Any]) -> ProjectorConfig:
    """Return the configuration that a dict (of a run file or a config.json) describes; without a
    `type` it is ParGo's.

    Raises:
        ValueError: unknown type, or values that its class refuses.
    """
    options = {key: value for key, value in values.items() if key != "model_type"}
    return projector_class(options.get("type", "pargo")).config_class(**options)


def build_projector(
    config: ProjectorConfig, vision_dim: int, llm_dim: int, num_patches: int
) -> Projector:
    """Build the projector that `config.type` names.

    Raises:
        ValueError: unknown type (the message lists the known ones), or sizes that do not fit.
    """
    return projector_class(config.type)(config, vision_dim, llm_dim, num_patches)
