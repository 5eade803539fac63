"""Fastest backends of a measurement -> pargo_ds/model/attention_table.py, format kept, older rows merged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pargo_ds.model import attention_table
from pargo_ds.model.attention import device_kind
from pargo_ds.model.flash import resolve_provider
from pargo_ds.training.attention_cases import Case

Table = dict[tuple[str, int, int], str]


def fastest(measured: Iterable[tuple[Case, Mapping[str, Any]]], device: torch.device) -> tuple[Table, Table]:
    """(partial, cascade): the backend with the least forward + backward time for each key.

    Shapes that share a key count equally (times relative to the shape's fastest are added); a backend that some of them
    lack is left out, because `auto` must work on all. Flash roads count with the provider that `auto` takes only.
    """
    provider = _auto_provider(device)
    times: dict[str, dict[tuple[str, int, int], dict[str, dict[str, float]]]] = {"partial": {}, "cascade": {}}
    for case, row in measured:
        if row["provider"] in ("", provider):
            key = (device_kind(device), *case.table_key)
            shapes = times[case.kind].setdefault(key, {})
            shapes.setdefault(row["shape"], {})[row["backend"]] = row["forward_backward_ms"]
    return tuple({key: _winner(shapes) for key, shapes in times[kind].items()} for kind in ("partial", "cascade"))


def _auto_provider(device: torch.device) -> str:
    """What `auto` takes on a GPU; "" where nothing is there, and elsewhere: the emulation is no reason to choose."""
    if device.type != "cuda":
        return ""
    try:
        return resolve_provider("auto", device)[0]
    except ValueError:
        return ""


def _winner(shapes: Mapping[str, Mapping[str, float]]) -> str:
    everywhere = set.intersection(*(set(times) for times in shapes.values()))
    relative = {name: sum(times[name] / min(times.values()) for times in shapes.values()) for name in everywhere}
    return min(relative, key=relative.__getitem__)


def write_table(partial: Table, cascade: Table, path: Path | None = None) -> None:
    """Put the rows into the file's PARTIAL and CASCADE, beside those of other keys."""
    path = Path(attention_table.__file__) if path is None else path
    text = path.read_text()
    for name, old, new in (
        ("PARTIAL", attention_table.PARTIAL, partial),
        ("CASCADE", attention_table.CASCADE, cascade),
    ):
        text, found = re.subn(rf"(?ms)^({name}: [^\n=]*= )\{{.*?\}}$", lambda m, t=old | new: m[1] + render(t), text)
        if found != 1:
            raise ValueError(f"{path}: expected one table {name} = {{...}}, found {found}")
    path.write_text(text)


def render(table: Table) -> str:
    """A table as the formatter leaves it."""
    rows = "".join(
        f'    ("{kind}", {dim}, {size}): "{backend}",\n' for (kind, dim, size), backend in sorted(table.items())
    )
    return "{\n" + rows + "}" if rows else "{}"
