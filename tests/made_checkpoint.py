"""Checkpoints made without training, and what converting them must give: the model built in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import merged
from torch import nn

from pargo_ds import assembly
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.checkpoint.fragments import WEIGHT, Fragment, as_tensors, fragment_file
from pargo_ds.checkpoint.frozen import frozen_hashes
from pargo_ds.checkpoint.manifest import FORMAT_VERSION, Manifest, describe_file, versions
from pargo_ds.config import RunConfig, parse_config

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
MODES = {
    "frozen": {"mode": "frozen", "lr": None},
    "full": {"mode": "full", "lr": 1e-3},
    "lora": {"mode": "lora", "lr": 1e-3, "lora": LORA},
}


def run_of(tiny_run: dict, llm: Path, vision: dict, mode: str, **changes) -> RunConfig:
    """The tiny run in bf16 on a published LLM and vision encoder."""
    body = merged(
        {
            **tiny_run,
            "llm": {"name": str(llm)},
            "vision": {"image_size": 64, "feature_norm": True, **vision},
        },
        {"train": {"precision": "bf16"}, **changes},
    )
    body["train"]["llm"] = {"weight_decay": 0.0, **MODES[mode]}
    return parse_config(body)


def trained_model(run: RunConfig) -> nn.Module:
    """As the run built it, with fp32 values of its own in all that trains (bf16 cannot hold them)."""
    model = assembly.build_model(run, assembly.build_processor(run), settings=None)
    apply_freezing(model, run.train)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def write_checkpoint(run: RunConfig, model: nn.Module, folder: Path, ranks: int = 2) -> Path:
    """What the run would save: each parameter cut among the ranks, the manifest with the frozen
    weights' hashes.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    (folder / "fragments").mkdir(parents=True)
    for rank in range(ranks):
        fragments = []
        for name, values in trained.items():
            flat = values.reshape(-1)
            start, stop = (flat.numel() * r // ranks for r in (rank, rank + 1))
            kinds = {kind: flat[start:stop].clone() for kind in (WEIGHT, "exp_avg")}
            fragments.append(Fragment(name=name, start=start, kinds=kinds))
        save_file(as_tensors(fragments), folder / fragment_file(rank))
    # The fingerprint is of the model as the run had it, in its precision.
    Manifest(
        format_version=FORMAT_VERSION,
        step=3,
        world_size=ranks,
        zero_stage=3,
        model_fingerprint=assembly.model_fingerprint(model),
        data_state={},
        config=run.model_dump(mode="json"),
        model_config=assembly.model_description(model),
        frozen_sources=assembly.frozen_sources(run),
        versions=versions(),
        files={
            fragment_file(rank): describe_file(folder / fragment_file(rank))
            for rank in range(ranks)
        },
        optimizer_step=3,
        parameters={name: list(values.shape) for name, values in trained.items()},
        frozen=frozen_hashes(model),
        totals={"samples": 12.0, "tokens": 3456.0},
    ).write(folder)
    return folder


def exported_values(
    model: nn.Module, merge: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(weights, adapter) in fp32 that an export must hold, by peft's own merge.

    Changes the model.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    model = model.float()
    adapter = {}
    if hasattr(model.llm, "peft_config"):
        if not merge:
            adapter = dict(get_peft_model_state_dict(model.llm, adapter_name="default"))
        for name, layer in list(model.llm.named_modules()):
            if isinstance(layer, LoraLayer):
                if merge:
                    layer.merge(safe_merge=True)
                parent, _, child = name.rpartition(".")
                setattr(model.llm.get_submodule(parent), child, layer.get_base_layer())
    weights = model.state_dict()
    if model.config.text_config.tie_word_embeddings:
        del weights["llm.lm_head.weight"]
    return weights, adapter
