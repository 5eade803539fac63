"""`--profile N`: a torch profile of N steps, one trace per rank, to be opened in Perfetto or
chrome://tracing.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pargo_ds import distributed

log = logging.getLogger("pargo_ds")
WARM_UP = 2
"""Steps before the first profiled one: the very first allocates and compiles."""


class StepProfile:
    """Profiles steps 3 ... N + 2 of this start of the run; call `step` after each step."""

    def __init__(self, folder: Path, steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"rank_{distributed.rank():05d}.json"
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.profile = profile(
            activities=activities,
            schedule=schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
        )
        self.profile.start()

    def _write(self, finished: profile) -> None:
        finished.export_chrome_trace(str(self.file))
        log.info("profile written to %s", self.file)

    def step(self) -> None:
        """Note that a step has ended."""
        self.profile.step()

    def close(self) -> None:
        """Stop. A profile that is not complete is written as far as it went."""
        self.profile.stop()
