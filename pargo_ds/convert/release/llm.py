"""InternLM2, the LLM of the authors' release, as a Llama: its folder, its configuration, its fused projection.

InternLM2 is Llama with other names and one fused `wqkv` (internlm/internlm2-7b: modeling_internlm2.py). Its folder
needs remote code to load as it is; here only its configuration, weights and tokenizer are read, and none of its code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import LlamaConfig

from pargo_ds.addresses import model_name
from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.convert.release.tensor_files import TensorFiles

DESCRIPTION = ["config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
COPIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


class LLMFolder:
    """InternLM2's folder, or its name on the hub; of the latter only what is asked for is fetched.

    Raises:
        CheckpointError: neither a folder nor a reachable name.
    """

    def __init__(self, source: str, revision: str | None = None) -> None:
        source = model_name(source)
        self.source, self.revision = source, revision
        self.is_local = Path(source).is_dir()
        self.folder = Path(source) if self.is_local else self._fetch(DESCRIPTION)

    def _fetch(self, patterns: list[str]) -> Path:
        try:
            return Path(snapshot_download(self.source, revision=self.revision, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"--llm {self.source} is neither a folder nor a reachable hub name: {error}"
            ) from error

    def config(self) -> LlamaConfig:
        """As `llama_config` of its config.json."""
        return llama_config(self.folder / "config.json")

    def weights(self) -> TensorFiles:
        """The base weights. Raises CheckpointError when there are none, or they cannot be read."""
        for pattern in WEIGHTS:
            folder = self.folder if self.is_local else self._fetch([pattern])
            if paths := sorted(folder.glob(pattern)):
                return TensorFiles(paths)
        raise CheckpointError(
            f"{self.source} holds no weights ({' or '.join(WEIGHTS)}), and the checkpoint does not hold the whole LLM; "
            "name InternLM2's folder with --llm"
        )


def llama_config(path: Path) -> LlamaConfig:
    """InternLM2's config.json -> the Llama that computes the same.

    Dynamic NTK and linear scaling are the same formulas in both: dynamic scaling changes nothing up to
    max_position_embeddings.

    Raises:
        CheckpointError: no InternLM2, missing numbers, or an option that Llama cannot say.
    """
    try:
        given = json.loads(path.read_text())
        kind = given.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if kind != "internlm2":
        raise CheckpointError(f"{path} describes a model of type {kind}; the release's LLM is an internlm2")
    unmapped = {
        "bias": given.get("bias", False),
        "tie_word_embeddings": given.get("tie_word_embeddings", False),
        "hidden_act": given["hidden_act"] if given.get("hidden_act", "silu") != "silu" else False,
        "rope_pos_id_version": given.get("rope_pos_id_version", "default") != "default",
    }
    if found := {name: value for name, value in unmapped.items() if value}:
        raise CheckpointError(f"{path} has {found}, which the conversion of InternLM2 to Llama does not know")
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
    """InternLM2's `rope_scaling` -> Llama's. Raises CheckpointError for a kind that InternLM2 does not have."""
    if given is None:
        return None
    kind = given.get("rope_type", given.get("type")) if isinstance(given, dict) else None
    factor = given.get("factor") if isinstance(given, dict) else None
    if kind not in ("dynamic", "linear") or not isinstance(factor, (int, float)) or factor < 1:
        raise CheckpointError(
            f"{path}: rope_scaling is {given}; known are dynamic and linear with a factor of at least 1"
        )
    return {"rope_type": kind, "factor": float(factor)}


def split_wqkv(fused: torch.Tensor, config: LlamaConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of the fused projection `((heads + 2 groups) x head_dim, ...)` -> those of query, key and value.

    By group (key-value head): its query heads, its key head, its value head, head_dim rows each. The rows of LoRA's
    B matrix lie in the same order.
    """
    groups, rest = config.num_key_value_heads, fused.shape[1:]
    head_dim = config.hidden_size // config.num_attention_heads
    heads = fused.reshape(groups, -1, head_dim, *rest)  # (groups, heads / groups + 2, head_dim, ...)
    return tuple(part.reshape(-1, *rest) for part in (heads[:, :-2], heads[:, -2], heads[:, -1]))
