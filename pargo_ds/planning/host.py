"""Host time of a micro-step: what a rank's Python takes to start the GPU's work."""

from __future__ import annotations

from dataclasses import dataclass

from pargo_ds.speed.step_benchmark import SYSTEMS, measure

MEASURED_LAYERS = 32


@dataclass(frozen=True)
class HostTimes:
    """Milliseconds of a decoder layer in a micro-step, by a system of step_benchmark."""

    of_layer: dict[str, float]
    source: str

    def seconds(self, stage: int, gather: str, layers: int, again: int) -> float:
        """Of a micro-step with `again` of `layers` layers checkpointed; ZeRO-1 is as ZeRO-2."""
        plain, checkpointed = "ZeRO-2", "ZeRO-2 before"
        if stage == 3:
            plain, checkpointed = "ZeRO-3", "ZeRO-3, checkpointing"
        if stage == 3 and gather == "modules":
            plain = checkpointed = "ZeRO-3 before"
        times = self.of_layer
        return ((layers - again) * times[plain] + again * times[checkpointed]) / 1e3


TABLE = {
    "frozen": {"ZeRO-3 before": 583, "ZeRO-3": 178, "ZeRO-3, checkpointing": 322,
               "ZeRO-2 before": 171, "ZeRO-2": 92},
    "full": {"ZeRO-3 before": 662, "ZeRO-3": 239, "ZeRO-3, checkpointing": 432,
             "ZeRO-2 before": 240, "ZeRO-2": 129},
}  # fmt: skip
"""Milliseconds of 32 layers by docs/benchmarks.md, on a busy machine. It has no figures for two of
them: ZeRO-2 before with a frozen LLM, and ZeRO-3 with checkpointing in full; they are in the
proportions of the other column.
"""


def table_times(mode: str) -> HostTimes:
    """What docs/benchmarks.md says of an LLM that is frozen, lora or full (lora: as full)."""
    row = TABLE["frozen" if mode == "frozen" else "full"]
    times = {name: ms / MEASURED_LAYERS for name, ms in row.items()}
    return HostTimes(times, "the table of docs/benchmarks.md")


def measured_times(mode: str, layers: int = 8) -> HostTimes:
    """The same measured on this machine, with a twin of few layers; about a minute."""
    systems = [name for name in SYSTEMS if name != "plain torch"]
    found = measure(layers, "frozen" if mode == "frozen" else "full", 3, 2, systems)
    times = {name: taken.median / layers for name, taken in found.items()}
    return HostTimes(times, f"measured here with a twin of {layers} layers")
