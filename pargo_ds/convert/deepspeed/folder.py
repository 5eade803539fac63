"""The folder that DeepSpeed's `engine.save_checkpoint` makes: which files it has, and whether one
save wrote them all.

Names as in DeepSpeed 0.19.8, runtime/engine.py (`_get_ckpt_name`, `_get_rank_zero_ckpt_name`):
    latest                                                    the newest tag
    TAG/mp_rank_00_model_states.pt                            ZeRO 0, 1, 2
    TAG/zero_pp_rank_R_mp_rank_00_model_states.pt             ZeRO 3, every rank
    TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt      ZeRO 1, 2, 3, every rank
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pargo_ds.checkpoint.manifest import LATEST
from pargo_ds.convert.deepspeed.pickles import Record, StatesFile
from pargo_ds.errors import CheckpointError, listed

STATES = "*_states.pt"
RANKS_SHOWN = 12
WHOLE_MODEL = "mp_rank_00_model_states.pt"
RANK_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_model_states\.pt")
RANK_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt")
FOREIGN = (
    (
        re.compile(r"(layer_\d+_)?expert_|expp_rank_"),
        "it has experts (MoE), which are divided among ranks of their own",
    ),
    (re.compile(r"layer_\d+-model_"), "it is of a pipeline of layers"),
    (re.compile(r".*mp_rank_(?!00_)\d+_"), "its tensors are split by tensor parallelism"),
)


def find_tag_folder(folder: Path, tag: str | None) -> Path:
    """Return the folder with the files: `folder`/`tag`, the folder that `folder`/latest names, or
    `folder` itself.

    Raises CheckpointError when there is no such folder; the message names the existing tags.
    """
    pointer = folder / LATEST
    if tag is None and pointer.is_file():
        tag = pointer.read_text().strip()
        if not tag:
            raise CheckpointError(f"{pointer} is empty; name the tag: {_tags_in(folder)}")
    if tag is None:
        if any(folder.glob(STATES)):
            return folder
        raise CheckpointError(
            f"{folder} is no DeepSpeed checkpoint: neither a file {LATEST!r} nor {STATES} in it "
            f"(tags: {_tags_in(folder)})"
        )
    chosen = folder / tag
    if not chosen.resolve().is_relative_to(folder.resolve()) or not chosen.is_dir():
        raise CheckpointError(
            f"{folder} has no checkpoint of the tag {tag!r} (tags: {_tags_in(folder)})"
        )
    return chosen


def _tags_in(folder: Path) -> str:
    return ", ".join(sorted({path.parent.name for path in folder.glob(f"*/{STATES}")})) or "none"


def refuse_foreign(where: Path) -> None:
    """Raise CheckpointError for checkpoints whose tensors cannot be assembled from the pieces of
    the ranks.
    """
    if (where / "zero").is_dir():
        raise CheckpointError(
            f"{where} is a universal checkpoint of DeepSpeed (ds_to_universal), which has lost frozen parameters and "
            "shapes' order; convert the checkpoint that it was made from"
        )
    if (where / "offloaded_tensors").is_dir():
        raise CheckpointError(
            f"{where}: ZeRO offloaded its weights to NVMe (offloaded_tensors/), which is not read"
        )
    for path in sorted(where.glob("*.pt")):
        for pattern, reason in FOREIGN:
            if pattern.match(path.name):
                raise CheckpointError(f"{where} cannot be converted: {reason} ({path.name})")


def rank_files(where: Path, pattern: re.Pattern) -> list[Path]:
    """Return the files of all ranks in the order of the ranks.

    Raises CheckpointError when a rank has no file or two files.
    """
    found: dict[int, Path] = {}
    for path in sorted(where.glob(STATES)):
        if match := pattern.fullmatch(path.name):
            if (rank := int(match[1])) in found:
                raise CheckpointError(
                    f"{where}: two saves are mixed, {found[rank].name} and {path.name}"
                )
            found[rank] = path
    missing = sorted(set(range(max(found, default=-1) + 1)) - found.keys())
    if missing:
        kind = next(iter(found.values())).name.rpartition("_mp_rank_")[2]
        raise CheckpointError(
            f"{where}: the *_{kind} of {len(missing)} ranks are missing: {listed(missing, RANKS_SHOWN)}"
        )
    return [found[rank] for rank in sorted(found)]


def check_count(files: list[StatesFile], ranks: int, where: Path, kind: str) -> None:
    """Raise CheckpointError unless there is one file for each of `ranks` ranks."""
    if len(files) < ranks:
        missing = listed(range(len(files), ranks), RANKS_SHOWN)
        raise CheckpointError(
            f"{where}: written by {ranks} ranks, the {kind} files of ranks {missing} are missing"
        )
    if len(files) > ranks:
        raise CheckpointError(
            f"{where}: written by {ranks} ranks, but there are {kind} files of {len(files)}; two saves are mixed "
            f"({files[ranks].path.name} is not of this one)"
        )


def check_same(files: list[StatesFile], what: str, values: list[Any]) -> None:
    """Raise CheckpointError naming the first file whose value differs from that of the first
    file.
    """
    for file, value in zip(files, values, strict=True):
        if value != values[0]:
            raise CheckpointError(
                f"{file.path}: {what} {value}, but {values[0]} in {files[0].path.name}; ranks of two saves are mixed"
            )


def agreed_stage(
    where: Path, model: StatesFile, optimizers: list[StatesFile], world_size: int
) -> int:
    """Return the ZeRO stage (1, 2 or 3) that the optimizer files of all ranks have.

    Raises CheckpointError when the files disagree on the stage, on the steps of the optimizer, or
    on the number of ranks.
    """
    if not optimizers:
        raise CheckpointError(
            f"{where}: the *zero_pp_rank_*_optim_states.pt of all ranks are missing"
        )
    states = [file.content["optimizer_state_dict"] for file in optimizers]
    # DeepSpeed's BF16_Optimizer (ZeRO 1 with bf16 and gradients that are accumulated in fp32) does
    # not write the stage.
    stages = [int(_number(state.get("zero_stage", 1))) for state in states]
    check_same(optimizers, "ZeRO stage", stages)
    for file, state in zip(optimizers, states, strict=True):
        count = state["partition_count"]
        counts = count if isinstance(count, list) else [count]
        if set(counts) != {world_size}:
            raise CheckpointError(
                f"{file.path}: cut for {count} ranks, but {model.path.name} was written by {world_size}; two saves are "
                "mixed, or experts (MoE) have ranks of their own"
            )
    kept = "optimizer_state_dict" if stages[0] == 3 else "base_optimizer_state"
    steps = [_optimizer_steps(state.get(kept)) for state in states]
    check_same(optimizers, "optimizer step", steps)
    if (stages[0] == 3) == (model.path.name == WHOLE_MODEL):
        raise CheckpointError(
            f"{optimizers[0].path}: of ZeRO stage {stages[0]}, which does not go with {model.path.name}; "
            "two saves are mixed"
        )
    return stages[0]


def _number(value: Any) -> Any:
    """Return the number of an enum's value, or the value itself. `ZeroStageEnum.weights` is read as
    a Record with the argument 3.
    """
    if isinstance(value, Record) and value.arguments:
        return value.arguments[0]
    return value


def _optimizer_steps(states: Any) -> float | None:
    """Return the largest number of steps that a rank's optimizer counts for one of its groups; None
    if it counts none.
    """
    if not isinstance(states, dict):
        return None
    groups = [*(states.get("state") or {}).values(), *(states.get("param_groups") or [])]
    counts = [group["step"] for group in groups if isinstance(group, dict) and "step" in group]
    return max((float(count) for count in counts), default=None)
