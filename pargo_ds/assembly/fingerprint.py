"""What a checkpoint records of its model: fingerprint, configuration and sources of frozen
weights.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pargo_ds.config import RunConfig
from pargo_ds.model import ParGoForConditionalGeneration


def model_fingerprint(model: ParGoForConditionalGeneration) -> str:
    """Return a hash of the model's configuration, and of the name, the shape and `requires_grad` of
    each parameter.
    """
    left_out = ("transformers_version", "_name_or_path", "auto_map")
    config = {key: value for key, value in model.config.to_dict().items() if key not in left_out}
    parameters = []
    for name, parameter in model.named_parameters():
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        parameters.append((name, shape, parameter.requires_grad))
    body = json.dumps([config, parameters], sort_keys=True, default=str)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def model_description(model: ParGoForConditionalGeneration) -> dict[str, Any]:
    """Return the model's configuration as in a config.json, with JSON values."""
    return json.loads(model.config.to_json_string(use_diff=False))


def frozen_sources(run: RunConfig) -> dict[str, Any]:
    """Return the sources of the weights that a checkpoint does not hold."""
    return {
        "start_from": run.start_from,
        "vision": {
            "name": run.vision.name,
            "revision": run.vision.revision,
            "weights": run.vision.weights,
        },
        "llm": {"name": run.llm.name, "revision": run.llm.revision},
    }
