"""The registry of projectors: what `projector.type` of a run file names."""

from collections.abc import Callable

from torch import nn

from .configuration_pargo import ParGoProjectorConfig
from .projector_adaptive_pool import AdaptivePoolProjector
from .projector_pargo import PargoProjector

PROJECTORS: dict[str, Callable[..., nn.Module]] = {"adaptive_pool": AdaptivePoolProjector, "pargo": PargoProjector}


def build_projector(config: ParGoProjectorConfig, vision_dim: int, llm_dim: int, num_patches: int) -> nn.Module:
    """Build the projector that `config.type` names.

    Raises:
        ValueError: unknown type (the message lists the known ones), or sizes that do not fit.
    """
    if config.type not in PROJECTORS:
        raise ValueError(
            f"unknown projector type '{config.type}': known types are {', '.join(sorted(PROJECTORS))}; "
            "set projector.type to one of them"
        )
    return PROJECTORS[config.type](config, vision_dim, llm_dim, num_patches)
