"""Choose the parameters that train in this stage, and show them in a table.

Each part (vision, projector, llm) is frozen or trained in full; the LLM may also be trained through
LoRA adapters, which peft adds to it in place. The model package itself does not know of adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.model.llm import switch_off_noise
from pargo_ds.train_sections import PARTS, PartSection, TrainSection

LINEAR = (nn.Linear, Conv1D)
"""The classes of linear layers; Conv1D is that of GPT-2."""


@dataclass(frozen=True)
class PartCount:
    """One row of the freeze table, with numbers of parameters."""

    part: str
    mode: str
    total: int
    trainable: int


def numel(parameter: torch.Tensor) -> int:
    """Return the number of elements of a whole parameter. Under ZeRO-3 it is in `ds_numel`, and the
    local tensor may be empty.
    """
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def apply_freezing(model: ParGoForConditionalGeneration, train: TrainSection) -> list[PartCount]:
    """Set requires_grad for each part, add LoRA to the LLM if the run asks for it, and return the
    freeze table.

    A frozen part computes as in inference: its dropout is off, even if its published configuration
    has dropout.
    """
    if train.llm.mode == "lora":
        add_lora(model.llm, train.llm)
    for part in PARTS:
        mode = getattr(train, part).mode
        for name, parameter in getattr(model, part).named_parameters():
            parameter.requires_grad_(is_trained(part, name, mode))
        if mode == "frozen":
            switch_off_noise(getattr(model, part))
    return freeze_table(model, train)


def is_trained(part: str, name: str, mode: str) -> bool:
    """Whether the parameter `name` of `part` trains under `mode`. The norm over the vision features
    never trains.
    """
    if part == "vision" and name.startswith("feature_norm"):
        return False
    return mode == "full" or (mode == "lora" and "lora_" in name)


def add_lora(llm: PreTrainedModel, section: PartSection) -> None:
    """Add LoRA adapters to `llm` in place. Adapters have the dtype of the weights, because
    DeepSpeed needs one dtype for all trained weights; peft's default, fp32 adapters beside bf16
    weights, fails.
    """
    from peft import LoraConfig, inject_adapter_in_model

    lora, linears = section.lora, all_linear(llm)
    assert lora is not None  # PartSection has one for mode: lora
    targets = linears if lora.targets == "all-linear" else lora.targets
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    try:
        inject_adapter_in_model(config, llm)
    except ValueError as error:
        raise ValueError(
            f"train.llm.lora.targets {targets}: {error}; linear layers here: {linears}"
        ) from error
    check_shared(llm)
    dtype = next(p.dtype for n, p in llm.named_parameters() if "lora_" not in n)
    for name, parameter in llm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)


def all_linear(llm: PreTrainedModel) -> list[str]:
    """Return names by which peft finds every linear layer on which an adapter acts, except for the
    head. A name is the last part of the layer's path if only such layers have it, else the whole
    path.
    """
    modules, head = dict(llm.named_modules()), llm.get_output_embeddings()
    linears = [n for n, m in modules.items() if isinstance(m, LINEAR) and m is not head]
    chosen = {name for name in linears if not is_passed_by(name, modules)}
    others = {name.rpartition(".")[2] for name in modules.keys() - chosen}
    found = set()
    for name in chosen:
        last = name.rpartition(".")[2]
        found.add(name if last in others else last)
    return sorted(found)


def is_passed_by(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an adapter on this linear layer would have no effect. This is the case if the model
    reads the weight without calling the layer (the kernels of Mamba's mixers, which have a
    parameter D), or if the output of the layer is no tensor (Llama 4's router).
    """
    parent, _, last = name.rpartition(".")
    in_mixer = hasattr(modules[parent], "D") and last in ("x_proj", "dt_proj", "out_proj")
    return in_mixer or "Router" in type(modules[name]).__name__


def check_shared(llm: PreTrainedModel) -> None:
    """Raise ValueError when a weight has several uses and only one of them has an adapter, because
    merging the adapter would change the other uses, too.

    Two cases are allowed: word embeddings that are tied to the head, because a merged export unties
    them; and a whole layer that is used several times, because its adapter is used with it.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    if wrapped := [name for name, layer in llm.named_modules() if isinstance(layer, ParamWrapper)]:
        raise ValueError(
            f"train.llm.lora.targets: peft puts LoRA of these names on the fused experts {wrapped[0]}, which exports "
            "have no place for; list targets without the experts' projections, such as [q_proj, k_proj, v_proj, o_proj]"
        )
    names: dict[int, list[str]] = {}
    for name, parameter in llm.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for layer_name, layer in llm.named_modules():
        if not isinstance(layer, LoraLayer) or layer in (
            llm.get_input_embeddings(),
            llm.get_output_embeddings(),
        ):
            continue
        for kind, parameter in layer.get_base_layer().named_parameters(recurse=False):
            inside = f".base_layer.{kind}"
            for name in names[id(parameter)]:
                if (
                    not name.endswith(inside)
                    or llm.get_submodule(name.removesuffix(inside)) is not layer
                ):
                    raise ValueError(
                        f"train.llm.lora.targets: {layer_name} shares its {kind} with {name}, which would change when "
                        "LoRA is merged; leave it out of targets"
                    )


def freeze_table(model: ParGoForConditionalGeneration, train: TrainSection) -> list[PartCount]:
    """Return the parameter counts of each part. A tensor with two names is counted once."""
    rows = []
    for part in PARTS:
        parameters = list(getattr(model, part).parameters())
        rows.append(
            PartCount(
                part=part,
                mode=getattr(train, part).mode,
                total=sum(map(numel, parameters)),
                trainable=sum(numel(p) for p in parameters if p.requires_grad),
            )
        )
    return rows


def format_table(rows: list[PartCount]) -> str:
    """Return the freeze table as text."""
    rows = [*rows, PartCount("all", "", sum(r.total for r in rows), sum(r.trainable for r in rows))]
    lines = [f"{'part':<10} {'mode':<7} {'parameters':>15} {'trainable':>13} {'share':>7}"]
    for row in rows:
        share = row.trainable / row.total if row.total else 0.0
        lines.append(
            f"{row.part:<10} {row.mode:<7} {row.total:>15,} {row.trainable:>13,} {share:>7.2%}"
        )
    return "\n".join(lines)
