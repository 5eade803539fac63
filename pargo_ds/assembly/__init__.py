"""Build the processor, the model with its weights and the loaders of a run file. Training and
conversion build the same model.
"""

from pargo_ds.assembly.configs import (
    build_meta_model,
    llm_config,
    model_config,
    run_projector,
    vision_config,
    visual_tokens,
)
from pargo_ds.assembly.fingerprint import frozen_sources, model_description, model_fingerprint
from pargo_ds.assembly.loaders import build_loaders, num_nodes
from pargo_ds.assembly.model import build_model, cast_as_loaded, load_model, prove_llm
from pargo_ds.assembly.processor import build_processor, check_processor, check_taken_over
from pargo_ds.assembly.weights import dtype_of, embedding_std, load_exported, load_llm, load_vision

__all__ = [
    "build_loaders",
    "build_meta_model",
    "build_model",
    "build_processor",
    "cast_as_loaded",
    "check_processor",
    "check_taken_over",
    "dtype_of",
    "embedding_std",
    "frozen_sources",
    "llm_config",
    "load_exported",
    "load_llm",
    "load_model",
    "load_vision",
    "model_config",
    "model_description",
    "model_fingerprint",
    "num_nodes",
    "prove_llm",
    "run_projector",
    "vision_config",
    "visual_tokens",
]
