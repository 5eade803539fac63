"""Read InternLM2, the LLM of the authors' release, as a Llama.

InternLM2 is a Llama with other names and one fused projection `wqkv` (internlm/internlm2-7b:
modeling_internlm2.py). transformers loads its folder with remote code only; this module reads
configuration, weights and tokenizer, and runs none of that code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import LlamaConfig

from pargo_ds.addresses import model_name
from pargo_ds.convert.release.tensor_files import TensorFiles
from pargo_ds.errors import CheckpointError

DESCRIPTION = ["config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
COPIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


class LLMFolder:
    """InternLM2's folder, or its name on the hub. From the hub only the requested files are
    fetched.

    Raises:
        CheckpointError: `source` is neither a folder nor a name that can be reached.
    """

    def __init__(self, source: str, revision: str | None = None) -> None:
        source = model_name(source)
        self.source, self.revision = source, revision
        self.is_local = Path(source).is_dir()
        self.folder = Path(source)
        if not self.is_local:
            self.folder = self._fetch(DESCRIPTION)

    def _fetch(self, patterns: list[str]) -> Path:
        try:
            return Path(
                snapshot_download(self.source, revision=self.revision, allow_patterns=patterns)
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"--llm {self.source} is neither a folder nor a reachable hub name: {error}"
            ) from error

    def config(self) -> LlamaConfig:
        """Return the result of `llama_config` for the folder's config.json."""
        return llama_config(self.folder / "config.json")

    def weights(self) -> TensorFiles:
        """Return the base weights. Raises CheckpointError when they are missing or cannot be
        read.
        """
        for pattern in WEIGHTS:
            folder = self.folder
            if not self.is_local:
                folder = self._fetch([pattern])
            if paths := sorted(folder.glob(pattern)):
                return TensorFiles(paths)
        raise CheckpointError(
            f"{self.source} holds no weights ({' or '.join(WEIGHTS)}), and the checkpoint does not hold the whole LLM; "
            "name InternLM2's folder with --llm"
        )


def llama_config(path: Path) -> LlamaConfig:
    """Return the configuration of the Llama that computes the same as the InternLM2 of a
    config.json.

    Dynamic NTK and linear scaling have the same formulas in both models; dynamic scaling changes
    nothing up to max_position_embeddings.

    Raises:
        CheckpointError: the model is no InternLM2, a number is missing, or Llama lacks an option.
    """
    try:
        given = json.loads(path.read_text())
        kind = given.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if kind != "internlm2":
        raise CheckpointError(
            f"{path} describes a model of type {kind}; the release's LLM is an internlm2"
        )
    unmapped = {
        "bias": given.get("bias", False),
        "tie_word_embeddings": given.get("tie_word_embeddings", False),
        "hidden_act": given.get("hidden_act", "silu") != "silu" and given["hidden_act"],
        "rope_pos_id_version": given.get("rope_pos_id_version", "default") != "default",
    }
    if found := {name: value for name, value in unmapped.items() if value}:
        raise CheckpointError(
            f"{path} has {found}, which the conversion of InternLM2 to Llama does not know"
        )
    if missing := [name for name in COPIED if not isinstance(given.get(name), (int, float))]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    heads, groups = given["num_attention_heads"], given["num_key_value_heads"]
    if groups < 1 or heads % groups or given["hidden_size"] % heads:
        raise CheckpointError(
            f"{path}: hidden_size {given['hidden_size']}, {heads} attention heads and {groups} key-value heads do not "
            "divide"
        )
    tokens = {name: given.get(name, default) for name, default in TOKENS.items()}
    return LlamaConfig(
        **{name: given[name] for name in COPIED},
        **tokens,
        rope_theta=float(given.get("rope_theta", 10000)),
        rope_scaling=rope_scaling(path, given.get("rope_scaling")),
        tie_word_embeddings=False,
    )


def rope_scaling(path: Path, given: Any) -> dict[str, Any] | None:
    """Convert InternLM2's `rope_scaling` to that of Llama.

    Raises CheckpointError for a kind that InternLM2 does not have.
    """
    if given is None:
        return None
    kind = factor = None
    if isinstance(given, dict):
        kind, factor = given.get("rope_type", given.get("type")), given.get("factor")
    if kind not in ("dynamic", "linear") or not isinstance(factor, (int, float)) or factor < 1:
        raise CheckpointError(
            f"{path}: rope_scaling is {given}; known are dynamic and linear with a factor of at least 1"
        )
    return {"rope_type": kind, "factor": float(factor)}


def split_wqkv(
    fused: torch.Tensor, config: LlamaConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Divide the rows of the fused projection `((heads + 2 groups) x head_dim, ...)` into those of
    query, key and value.

    The rows of a group (a key-value head) are its query heads, its key head and its value head,
    with head_dim rows each. The rows of LoRA's B matrix have the same order.
    """
    groups, rest = config.num_key_value_heads, fused.shape[1:]
    head_dim = config.hidden_size // config.num_attention_heads
    # (groups, heads / groups + 2, head_dim, ...)
    heads = fused.reshape(groups, -1, head_dim, *rest)
    query, key, value = heads[:, :-2], heads[:, -2], heads[:, -1]
    return query.reshape(-1, *rest), key.reshape(-1, *rest), value.reshape(-1, *rest)
