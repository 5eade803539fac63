"""A training checkpoint (ZeRO 1, 2 or 3, any number of ranks) -> a Hugging Face folder.

Trained weights come from the checkpoint in fp32, frozen ones from where the run got them. LoRA stays beside the model
as a peft adapter folder (`adapter/`), or is merged into the LLM.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from pargo_ds.checkpoint import version_1
from pargo_ds.checkpoint.fragments import WEIGHT, FragmentFiles
from pargo_ds.checkpoint.manifest import CheckpointError, Manifest, newest, read_manifest, verify_files
from pargo_ds.config import RunConfig, parse_config
from pargo_ds.training import assembly
from pargo_ds.training.freezing import apply_freezing

ADAPTER = "adapter"
SHARD_SIZE = "4GB"


def convert(checkpoint: Path, out: Path, *, merge_lora: bool = False, force: bool = False) -> dict[str, int]:
    """Write `out`; returns counts {"trained": ..., "frozen": ...} of parameters.

    `checkpoint` is a step folder, or a run's folder or its checkpoints/ (then the newest one).
    Raises CheckpointError or ConfigError naming what does not fit; `out` is whole or absent.
    """
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists; choose another folder or pass --force to replace it")
    folder = find_checkpoint(checkpoint)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    run = parse_config(manifest.config, source=str(folder / "manifest.json"))
    processor = assembly.build_processor(run)
    model = assembly.build_model(run, processor, settings=None).float()
    apply_freezing(model, run.train)
    if assembly.model_fingerprint(model) != manifest.model_fingerprint:
        raise CheckpointError(
            f"the frozen parts named in {folder} now describe another model: {manifest.frozen_sources}; "
            "put back what the run was trained with"
        )
    counts = load_trained(model, read_trained(folder, manifest), str(folder))
    has_lora = run.train.llm.mode == "lora"
    aside = out.with_name(f".writing_{out.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if has_lora:
        take_out_lora(model, run, aside / ADAPTER, merge_lora)
    model = model.to(assembly.dtype_of(run))
    # Answers end with the prompt's end-of-turn token, whatever the LLM's own file says.
    model.generation_config.eos_token_id = processor.stop_token_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(aside, max_shard_size=SHARD_SIZE)
    processor.save_pretrained(aside)
    (aside / "README.md").write_text(model_card(run, manifest, has_lora, merge_lora))
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)
    return counts


def find_checkpoint(path: Path) -> Path:
    """The step folder that `path` means."""
    if (path / "manifest.json").is_file():
        return path
    for candidate in (path, path / "checkpoints"):
        folder = newest(candidate)
        if folder is not None:
            return folder
    raise CheckpointError(f"{path} is neither a checkpoint (no manifest.json) nor a run folder with checkpoints/latest")


def read_trained(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """All trained parameters of a checkpoint, whole and in fp32."""
    if manifest.format_version == 1:
        return version_1.read_trained(folder)
    files = FragmentFiles(folder, manifest.parameters)
    return {name: files.whole(WEIGHT, name) for name in files.names()}


def load_trained(model: nn.Module, trained: dict[str, torch.Tensor], where: str) -> dict[str, int]:
    """Copy trained weights into the model, strictly; all faults in one error."""
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())
    state = {name: tensor for name, tensor in trained.items() if name not in buffers}
    aliases = tied_names(model)
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(name for name in state.keys() - wanted.keys() if aliases.get(name) not in wanted)
    misshapen = sorted(n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape)
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{where} does not fit its model: missing {missing}, unexpected {unexpected}, other shape {misshapen}"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])
    total = sum(p.numel() for p in model.parameters())
    count = sum(p.numel() for p in wanted.values())
    return {"trained": count, "frozen": total - count}


def tied_names(model: nn.Module) -> dict[str, str]:
    """Second names of shared parameters -> their first name."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return aliases


def take_out_lora(model: nn.Module, run: RunConfig, folder: Path, merge: bool) -> None:
    """Leave plain linear layers behind: with the adapters merged in, or with the adapters saved to `folder`."""
    from peft.tuners.lora import LoraLayer

    if not merge:
        save_adapter(model, run, folder)
    for name, layer in list(model.llm.named_modules()):
        if isinstance(layer, LoraLayer):
            if merge:
                layer.merge(safe_merge=True)
            parent_name, _, child = name.rpartition(".")
            setattr(model.llm.get_submodule(parent_name), child, layer.get_base_layer())
    del model.llm.peft_config  # else save_pretrained would take the LLM for an adapter


def save_adapter(model: nn.Module, run: RunConfig, folder: Path) -> None:
    """The adapters as peft saves them: `PeftModel.from_pretrained(model.llm, folder)` puts them back."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = next(iter(model.llm.peft_config.values()))
    config.save_pretrained(folder)
    state = get_peft_model_state_dict(model.llm, adapter_name="default")
    dtype = assembly.dtype_of(run)
    prefixed = {f"base_model.model.{name}": t.to(dtype).contiguous() for name, t in state.items()}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def model_card(run: RunConfig, manifest: Manifest, has_lora: bool, merged: bool) -> str:
    """README.md of the exported folder."""
    lora = ""
    if has_lora:
        lora = (
            "\nLoRA is merged into the LLM.\n" if merged else f"\nThe LLM's LoRA adapter lies in `{ADAPTER}/` (peft).\n"
        )
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    projector, llm = run.projector, run.llm.name
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
---
# {run.name}: a ParGo model

A partial-global projector ({projector.partial_tokens} partial + {projector.global_tokens} global tokens, cascade
"{projector.cascade}") between the vision encoder `{run.vision.name}` and the language model `{llm}`,
trained with pargo_ds: step {manifest.step}, {manifest.world_size} ranks, ZeRO stage {manifest.zero_stage}, {versions}.
{lora}
```python
import pargo_ds.model  # registers the classes
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
```
"""
