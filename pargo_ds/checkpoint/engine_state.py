"""Copy the state of a DeepSpeed engine of any ZeRO stage on this rank to fragments, and restore it
from fragments.

ZeRO 3 cuts each flattened parameter into equal runs, one for each rank; the last run is padded.
ZeRO 1 and 2 concatenate the parameters of a group and cut the result, so a rank may hold any run of
a parameter, or nothing of it. Sources: DeepSpeed 0.19.8, runtime/zero/stage3.py,
runtime/zero/stage_1_and_2.py, utils/tensor_fragment.py.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pargo_ds.checkpoint.fragments import WEIGHT, Fragment, FragmentFiles
from pargo_ds.errors import CheckpointError


def trained_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """Return the trained parameters by their names in the model."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def trained_shapes(engine: Any) -> dict[str, list[int]]:
    """Return the whole shapes of the trained parameters."""
    trained = trained_parameters(engine)
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained.items()}


def optimizer_states(
    optimizer: torch.optim.Optimizer, device: torch.device | str = "cpu"
) -> tuple[list[str], bool]:
    """Return the names of an optimizer's states that have the shape of the weight, and whether the
    optimizer counts steps. AdamW: (["exp_avg", "exp_avg_sq"], True).

    They are found by one step of a new optimizer of the same class and settings with a small
    weight. So any optimizer whose states have the shape of the weight works without a change here.
    """
    small = nn.Parameter(torch.zeros(2, device=device))
    small.grad = torch.zeros_like(small)
    # torch's AdamW has an entry in `defaults` that its constructor does not accept.
    taken = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in taken}
    twin = type(optimizer)([small], **settings)
    twin.step()
    state = twin.state[small]
    names = [name for name, value in state.items() if getattr(value, "shape", None) == small.shape]
    return names, "step" in state


def snapshot(engine: Any) -> list[Fragment]:
    """Copy all weights (fp32) and optimizer states that this rank holds into host memory."""
    fragments = []
    _create_states(engine)  # a checkpoint may come before the first step
    for name, parameter in trained_parameters(engine).items():
        start, views = _views(engine, parameter)
        if views and views[WEIGHT].numel():
            kinds = {kind: _on_the_host(view) for kind, view in views.items()}
            fragments.append(Fragment(name=name, start=start, kinds=kinds))
    return fragments


def _on_the_host(values: torch.Tensor) -> torch.Tensor:
    """Always a copy, because training goes on while it is saved."""
    return values.detach().to("cpu", copy=True).contiguous()


def optimizer_step(engine: Any) -> int:
    """Return the number of steps that the optimizer has counted; AdamW's bias correction depends on
    it. It is 0 before the first step.
    """
    optimizer = _torch_optimizer(engine)
    counted = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    counted |= {int(group["step"]) for group in optimizer.param_groups if "step" in group}
    if len(counted) > 1:
        raise CheckpointError(
            f"the optimizer's parameters count different steps ({sorted(counted)}); expected one"
        )
    if not counted:
        return 0
    return counted.pop()


def restore(engine: Any, files: FragmentFiles, step: int) -> None:
    """Copy the weights and optimizer states of a checkpoint into the engine; each rank reads the
    parts that it holds. Collective.

    `step` is the number of steps that the optimizer has counted. Raises CheckpointError when
    parameters are missing, unexpected or of another shape; one message names all of them.
    """
    parameters, shapes = trained_parameters(engine), trained_shapes(engine)
    missing = sorted(shapes.keys() - files.names())
    unexpected = sorted(set(files.names()) - shapes.keys())
    common = shapes.keys() & files.shapes.keys()
    misshapen = sorted(name for name in common if list(files.shapes[name]) != shapes[name])
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{files.folder} does not fit the model: missing {missing}, unexpected {unexpected}, of another shape "
            f"{misshapen}"
        )
    optimizer = engine.optimizer
    partitioned = _is_zero_3(engine)
    if partitioned:
        # Without this, small weights that ZeRO 3 keeps whole on each rank would not be restored.
        optimizer.checkpoint_event_prologue()
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


def _states(engine: Any) -> tuple[list[str], bool]:
    """`optimizer_states` of the engine's optimizer, computed once and kept as its attribute."""
    optimizer: Any = _torch_optimizer(engine)
    if not hasattr(optimizer, "pargo_states"):
        # The optimizer's own list of weights is empty between the steps of ZeRO.
        optimizer.pargo_states = optimizer_states(optimizer, _flat_weights(engine)[0].device)
    return optimizer.pargo_states


def _flat_weights(engine: Any) -> list[torch.Tensor]:
    """The fp32 weights that this rank updates, one flat tensor for each group of parameters."""
    if _is_zero_3(engine):
        return engine.optimizer.fp32_partitioned_groups_flat
    return engine.optimizer.single_partition_of_fp32_groups


def _views(engine: Any, parameter: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]]:
    """Return (first element, 1-D views by kind) of the run of a parameter that this rank holds; {}
    if it holds nothing of it.
    """
    if _is_zero_3(engine):
        return _zero_3_views(engine.optimizer, parameter, _states(engine)[0])
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return 0, {}
    return mapping.lp_fragment_address.start, {
        WEIGHT: mapping.get_hp_fragment(),
        **{kind: mapping.get_hp_fragment(kind) for kind in _states(engine)[0]},
    }


def _zero_3_views(
    optimizer: Any, parameter: Any, states: list[str]
) -> tuple[int, dict[str, torch.Tensor]]:
    """`_views` for ZeRO 3. `parameter` is Any, because DeepSpeed adds attributes to it."""
    length = parameter.ds_tensor.ds_numel
    start = dist.get_rank(group=parameter.ds_process_group) * length
    valid = max(0, min(length, parameter.ds_numel - start))  # what follows is padding
    views = {}
    for kind in (WEIGHT, *states):
        state = None if kind == WEIGHT else kind
        view, _ = optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=state
        )
        views[kind] = view[:valid]
    return start, views


def _refresh_partition(parameter: Any, views: dict[str, torch.Tensor]) -> None:
    """Update the copy of the weights in the run's precision, with which ZeRO 3 computes, from the
    fp32 weights.
    """
    valid = views[WEIGHT].numel()
    parameter.ds_tensor.data[:valid].copy_(views[WEIGHT])


def _create_states(engine: Any) -> None:
    """Create the optimizer's states, which it would create at its first step only."""
    optimizer, zero = _torch_optimizer(engine), engine.optimizer
    names, counts_steps = _states(engine)
    for flat in _flat_weights(engine):
        state = optimizer.state[flat]
        for kind in names:
            if kind not in state:
                state[kind] = torch.zeros_like(flat)
        if counts_steps and "step" not in state:
            state["step"] = torch.zeros(
                (), dtype=torch.float32, device=_step_device(optimizer, flat)
            )
    if not _is_zero_3(engine):
        # DeepSpeed 0.19.8 links parameters to their states after the first step of the first group,
        # when the states of later groups do not exist yet; so link them again.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _step_device(optimizer: torch.optim.Optimizer, flat: torch.Tensor) -> torch.device:
    groups = optimizer.param_groups
    if any(group.get("fused") or group.get("capturable") for group in groups):
        return flat.device
    return torch.device("cpu")


def _set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(step)
        elif "step" in state:
            state["step"] = step
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = step
