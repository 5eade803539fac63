"""Load an exported folder the way a user does: through the Auto classes, after its files were found
whole.

The classes are those of pargo_ds; code that lies in the folder is never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import pargo_ds.model  # noqa: F401  (registers the Auto classes)
from pargo_ds.files.sha256sums import check_hashes


def load_exported(folder: str | Path, device: str | None = None) -> tuple[Any, Any]:
    """Load (model in evaluation mode, processor) of an exported folder; `device` defaults to a GPU
    where there is one.

    Raises ValueError when the folder is not an exported ParGo model, a file of it was altered, is
    missing or was not downloaded, or the device cannot be had.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not an exported model: it has no config.json. Export a checkpoint with "
            "tools/convert_checkpoint.py zero-to-hf CHECKPOINT OUT"
        )
    check_hashes(Path(folder))
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); export the checkpoint anew") from error
    if kind != "pargo":
        raise ValueError(
            f"{folder} holds a model of type {kind}; expected pargo, as zero-to-hf writes it"
        )
    if not device:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype="auto", trust_remote_code=False
        )
        merge_adapter(model, Path(folder) / "adapter")
        model = model.to(device).eval()  # type: ignore[arg-type]  # its decorator hides self
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} cannot be loaded on {device}: {error}") from error
    return model, processor


def merge_adapter(model: Any, adapter: Path) -> None:
    """Add an exported LoRA adapter into the LLM, where there is one; without it the LLM would
    answer untrained.

    An adapter of word embeddings that are tied to the head, or of that head, stays beside its
    weight, which merging would change for both.
    """
    if not adapter.is_dir():
        return
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    adapted = PeftModel.from_pretrained(model.llm, adapter)  # puts LoRA into model.llm
    ends = model.llm.get_input_embeddings(), model.llm.get_output_embeddings()
    tied = model.llm.config.get_text_config().tie_word_embeddings
    if not (tied and any(isinstance(end, LoraLayer) for end in ends)):
        model.llm = adapted.merge_and_unload()
