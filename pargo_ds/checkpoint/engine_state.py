"""What a DeepSpeed engine of any ZeRO stage holds on this rank, as fragments; and fragments put back into it.

ZeRO 3 cuts each flattened parameter into equal runs, one per rank, the last one padded. ZeRO 1 and 2 cut a whole group
of parameters that lie one behind the other, so that a rank holds any run of a parameter, or nothing of it. Sources:
DeepSpeed 0.19.8, runtime/zero/stage3.py, runtime/zero/stage_1_and_2.py, utils/tensor_fragment.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pargo_ds.checkpoint.fragments import WEIGHT, Fragment, FragmentFiles
from pargo_ds.checkpoint.manifest import CheckpointError

STATES = ("exp_avg", "exp_avg_sq")


def trained_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """The parameters that train, by the model's own names."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def trained_shapes(engine: Any) -> dict[str, list[int]]:
    """Whole shapes of the parameters that train."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained_parameters(engine).items()}


def snapshot(engine: Any) -> list[Fragment]:
    """Copies in host memory of all weights (fp32) and optimizer states that this rank holds."""
    fragments = []
    _create_states(engine)  # a checkpoint may come before the first step
    for name, parameter in trained_parameters(engine).items():
        start, views = _views(engine, parameter)
        if views and views[WEIGHT].numel():
            kinds = {kind: view.detach().to("cpu", copy=True).contiguous() for kind, view in views.items()}
            fragments.append(Fragment(name=name, start=start, kinds=kinds))
    return fragments


def optimizer_step(engine: Any) -> int:
    """Steps that AdamW has counted (bias correction depends on it); 0 before the first."""
    optimizer = _torch_optimizer(engine)
    counted = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    counted |= {int(group["step"]) for group in optimizer.param_groups if "step" in group}
    if len(counted) > 1:
        raise CheckpointError(f"the optimizer's parameters count different steps ({sorted(counted)}); expected one")
    return counted.pop() if counted else 0


def restore(engine: Any, files: FragmentFiles, step: int) -> None:
    """Put a checkpoint's weights and optimizer states into the engine, cut as this engine needs them. Collective.

    `step` is the optimizer's count. Raises CheckpointError for parameters that are missing, unexpected or of another
    shape, all of them in one message.
    """
    parameters, shapes = trained_parameters(engine), trained_shapes(engine)
    missing = sorted(shapes.keys() - files.names())
    unexpected = sorted(set(files.names()) - shapes.keys())
    misshapen = sorted(n for n in shapes.keys() & files.shapes.keys() if list(files.shapes[n]) != shapes[n])
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{files.folder} does not fit the model: missing {missing}, unexpected {unexpected}, of another shape "
            f"{misshapen}"
        )
    optimizer = engine.optimizer
    partitioned = _is_zero_3(engine)
    if partitioned:
        optimizer.checkpoint_event_prologue()  # small weights that ZeRO 3 keeps whole would stay as they are
    _create_states(engine)
    with torch.no_grad():
        for name, parameter in parameters.items():
            start, views = _views(engine, parameter)
            for kind, view in views.items():
                if view.numel():
                    view.copy_(files.read(kind, name, start, start + view.numel()))
            if partitioned:
                _refresh_partition(parameter, views)
    _set_step(_torch_optimizer(engine), step)
    if partitioned:
        optimizer.checkpoint_event_epilogue()
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def _is_zero_3(engine: Any) -> bool:
    return int(engine.zero_optimization_stage()) == 3


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _views(engine: Any, parameter: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]]:
    """(first element, {kind: 1-D view}) of what this rank holds of a parameter; no views where it holds nothing."""
    if _is_zero_3(engine):
        return _zero_3_views(engine.optimizer, parameter)
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return 0, {}
    return mapping.lp_fragment_address.start, {
        WEIGHT: mapping.get_hp_fragment(),
        **{kind: mapping.get_hp_fragment(kind) for kind in STATES},
    }


def _zero_3_views(optimizer: Any, parameter: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]]:
    length = parameter.ds_tensor.ds_numel
    start = dist.get_rank(group=parameter.ds_process_group) * length
    valid = max(0, min(length, parameter.ds_numel - start))  # what follows is padding
    views = {}
    for kind in (WEIGHT, *STATES):
        state = None if kind == WEIGHT else kind
        view, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=state)
        views[kind] = view[:valid]
    return start, views


def _refresh_partition(parameter: nn.Parameter, views: dict[str, torch.Tensor]) -> None:
    """ZeRO 3 computes with a copy of the weights in the run's precision; make it anew from the fp32 ones."""
    valid = views[WEIGHT].numel()
    parameter.ds_tensor.data[:valid].copy_(views[WEIGHT])


def _create_states(engine: Any) -> None:
    """AdamW makes its states at the first step; a restored run needs them before."""
    optimizer, zero = _torch_optimizer(engine), engine.optimizer
    for flat in zero.fp32_partitioned_groups_flat if _is_zero_3(engine) else zero.single_partition_of_fp32_groups:
        state = optimizer.state[flat]
        for kind in STATES:
            if kind not in state:
                state[kind] = torch.zeros_like(flat)
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=_step_device(optimizer, flat))
    if not _is_zero_3(engine):
        # DeepSpeed 0.19.8 links parameters to their states after the first group's first step, when the states of later
        # groups do not exist yet; link them anew.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _step_device(optimizer: torch.optim.Optimizer, flat: torch.Tensor) -> torch.device:
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return flat.device if on_device else torch.device("cpu")


def _set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(step)
        elif "step" in state:
            state["step"] = step
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = step
