"""What must be known of DeepSpeed's ZeRO while a model is put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def zero_stage(settings: dict[str, Any]) -> int:
    """Return the ZeRO stage of DeepSpeed's settings; 0 where they name none."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


@contextmanager
def whole_weight(weight: torch.nn.Parameter) -> Iterator[None]:
    """In here a weight that ZeRO-3 has partitioned is whole on every rank (collective); others are
    whole anyway.
    """
    if not hasattr(weight, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        yield
