"""Seconds of an optimizer step from those of its parts, and what binds it."""

from __future__ import annotations

from dataclasses import dataclass

HIDDEN = 0.8
"""Part of a micro-step's work behind which collectives can hide; the first gathers, and the last
reductions, have nothing before or after them.
"""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of several micro-steps."""

    micro_steps: int
    gpu: dict[str, float]
    """Of a micro-step, by part."""
    host: float
    """Of a micro-step."""
    network: float
    """Of a micro-step: collectives of weights and gradients."""
    update: float
    """Once a step: optimizer, and collectives that belong to it."""

    @property
    def work(self) -> float:
        """Of a micro-step, when nothing has to be waited for: GPU and host work at the same time."""
        return max(sum(self.gpu.values()), self.host)

    @property
    def exposed(self) -> float:
        """Of a micro-step: collectives that nothing hides."""
        return max(0.0, self.network - HIDDEN * self.work)

    @property
    def seconds(self) -> float:
        return self.micro_steps * (self.work + self.exposed) + self.update

    @property
    def binding(self) -> str:
        """The resource that would have to grow first."""
        if self.exposed > 0.1 * self.work:
            return "network"
        return "host" if self.host > sum(self.gpu.values()) else "GPU"
