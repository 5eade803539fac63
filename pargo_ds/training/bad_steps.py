"""Steps whose loss or gradient is no number: skipped and counted, and after some in a row the end
of the run.
"""

from __future__ import annotations

import logging
import math
from itertools import chain
from typing import Any

from pargo_ds import distributed
from pargo_ds.batch import Batch
from pargo_ds.errors import listed

log = logging.getLogger("pargo_ds")
NAMES_SHOWN = 40


class BadSteps:
    """Counts bad steps in a row, and remembers the samples that were in them.

    Used by all ranks together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._samples: list[tuple[int, list[str]]] = []

    def check_step(
        self, step: int, figures: dict[str, Any], skipped: bool, batches: list[Batch]
    ) -> bool:
        """Whether step `step` was bad; DeepSpeed left the weights alone when `skipped`.

        Raises FloatingPointError on every rank, naming the samples of all ranks, when the last
        `most` were bad, or when the loss is no number though the step was applied.
        """
        if math.isfinite(figures["loss"]) and not skipped:
            self._samples.clear()
            return False
        own = list(chain.from_iterable(batch.sample_ids for batch in batches))
        names = list(chain.from_iterable(distributed.gather_objects(own)))
        self._samples.append((step, names))
        log.warning(
            "step %d was skipped: loss %s, gradient not finite; samples %s",
            step,
            figures["loss"],
            listed(names, NAMES_SHOWN),
        )
        if len(self._samples) >= self.most or not skipped:
            packs = []
            for number, of_step in self._samples:
                packs.append(f"step {number}: {listed(of_step, NAMES_SHOWN)}")
            raise FloatingPointError(
                f"loss or gradient was no number in {len(self._samples)} step(s) in a row (survival.bad_steps: "
                f"{self.most}). Samples of their packs: {'; '.join(packs)}. Look at these samples or lower the "
                "learning rate; the newest checkpoint is from before them"
            )
        return True
