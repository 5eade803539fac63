"""What a stretch of training asks of the host, counted: collectives, waits for the device, hooks.

Counts need no clock and no GPU, so that CI can hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::unique_consecutive", "aten::_unique2", "aten::masked_scatter",
)  # fmt: skip
"""Operators at which the host waits for a GPU, because shapes or values depend on data."""


class StepCounts(TorchDispatchMode):
    """Counts operators in here: `collectives` by name, and `waits` (WAITS, and indexing by a mask).

    On a CPU the same operators run as on a GPU, so what would wait there is seen here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            self.collectives[name.removeprefix("c10d::")] += 1
        elif name in WAITS or _by_mask(name, args) or _unknown_size(name, kwargs or {}):
            self.waits[name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    if not name.startswith(("aten::index", "aten::_index_put")) or len(args) < 2:
        return False
    indices = args[1] if isinstance(args[1], (list, tuple)) else []
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _unknown_size(name: str, kwargs: dict[str, Any]) -> bool:
    return name == "aten::repeat_interleave" and kwargs.get("output_size") is None


@contextmanager
def counted_hooks(model: nn.Module) -> Iterator[Counter[str]]:
    """In here every call of a module's forward hook or pre-hook is counted, by the hook's name."""
    calls: Counter[str] = Counter()
    kept = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                kept.append((hooks, key, hook))
                hooks[key] = _counting(hook, calls)
    try:
        yield calls
    finally:
        for hooks, key, hook in kept:
            hooks[key] = hook


def _counting(hook: Any, calls: Counter[str]) -> Any:
    def counting(*args: Any) -> Any:
        calls[getattr(hook, "__name__", "hook")] += 1
        return hook(*args)

    return counting
