"""What trains in this stage, and the table that says so.

Each part (vision, projector, llm) is frozen, trained in full, or (llm only) trained through LoRA adapters that peft
puts into the language model in place; the model package knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pargo_ds.config import PARTS, PartSection, TrainSection
from pargo_ds.model.llm import switch_off_noise

LINEAR = (nn.Linear, Conv1D)
"""Conv1D is GPT-2's linear layer."""


@dataclass(frozen=True)
class PartCount:
    """One row of the freeze table; counts are parameters."""

    part: str
    mode: str
    total: int
    trainable: int


def numel(parameter: torch.Tensor) -> int:
    """Full number of elements; ZeRO-3 keeps it in `ds_numel`, the local tensor may be empty."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def apply_freezing(model: nn.Module, train: TrainSection) -> list[PartCount]:
    """Set requires_grad part by part (adding LoRA to the llm where asked) and return the freeze table.

    A frozen part computes as in inference: its dropout is off, whatever its published configuration says.
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
    """Whether the parameter `name` of `part` trains under `mode`; the norm over the vision features never does."""
    if part == "vision" and name.startswith("feature_norm"):
        return False
    return mode == "full" or (mode == "lora" and "lora_" in name)


def add_lora(llm: nn.Module, section: PartSection) -> None:
    """Put LoRA adapters into `llm` in place. Adapters keep the dtype of the weights beside them: DeepSpeed needs one
    dtype for all that trains (peft's usual fp32 adapters fail beside bf16 weights)."""
    from peft import LoraConfig, inject_adapter_in_model

    lora, linears = section.lora, all_linear(llm)
    targets = linears if lora.targets == "all-linear" else lora.targets
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    try:
        inject_adapter_in_model(config, llm)
    except ValueError as error:
        raise ValueError(f"train.llm.lora.targets {targets}: {error}; linear layers here: {linears}") from error
    check_shared(llm)
    dtype = next(p.dtype for n, p in llm.named_parameters() if "lora_" not in n)
    for name, parameter in llm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)


def all_linear(llm: nn.Module) -> list[str]:
    """The names by which peft finds every linear layer that calls it, but the head: last parts where these are theirs
    alone, else whole names."""
    modules, head = dict(llm.named_modules()), llm.get_output_embeddings()
    chosen = {n for n, m in modules.items() if isinstance(m, LINEAR) and m is not head and not is_passed_by(n, modules)}
    others = {name.rpartition(".")[2] for name in modules.keys() - chosen}
    return sorted({name if (last := name.rpartition(".")[2]) in others else last for name in chosen})


def is_passed_by(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an adapter on this linear layer would not act: its weight is read without calling it (by the kernels of
    Mamba's mixers, which are known by their parameter D), or its output is no tensor (Llama 4's router)."""
    parent, _, last = name.rpartition(".")
    in_mixer = hasattr(modules[parent], "D") and last in ("x_proj", "dt_proj", "out_proj")
    return in_mixer or "Router" in type(modules[name]).__name__


def check_shared(llm: nn.Module) -> None:
    """ValueError where an adapter lies on one of several uses of a weight, which merging it would change as well.

    Word embeddings that are tied to the head may have one: a merged export unties them. So may a layer that is used
    several times as a whole, since its adapter is used as often.
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
        if not isinstance(layer, LoraLayer) or layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
            continue
        for kind, parameter in layer.get_base_layer().named_parameters(recurse=False):
            inside = f".base_layer.{kind}"
            for name in names[id(parameter)]:
                if not name.endswith(inside) or llm.get_submodule(name.removesuffix(inside)) is not layer:
                    raise ValueError(
                        f"train.llm.lora.targets: {layer_name} shares its {kind} with {name}, which would change when "
                        "LoRA is merged; leave it out of targets"
                    )


def freeze_table(model: nn.Module, train: TrainSection) -> list[PartCount]:
    """Parameter counts per part; a tensor shared by two names counts once."""
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
    """The freeze table as text."""
    rows = [*rows, PartCount("all", "", sum(r.total for r in rows), sum(r.trainable for r in rows))]
    lines = [f"{'part':<10} {'mode':<7} {'parameters':>15} {'trainable':>13} {'share':>7}"]
    for row in rows:
        share = row.trainable / row.total if row.total else 0.0
        lines.append(f"{row.part:<10} {row.mode:<7} {row.total:>15,} {row.trainable:>13,} {share:>7.2%}")
    return "\n".join(lines)
