"""Run pargo_ds.train and write the second step's full gradients to RECORD (safetensors) just before
the update.

The second, because the projector starts with zero weights behind which there is no gradient yet.
With HAND_MADE set, each step's packs are one with images and one of text only, one per rank where
there are two.
"""

import os
import sys

from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from pargo_ds import assembly, distributed, train
from pargo_ds.batch import Encoded, pack
from pargo_ds.data.conversation import encode
from pargo_ds.data.shards.mds import read_samples
from pargo_ds.training.trainer import Trainer

plain_step = Trainer.optimizer_step
steps_seen = []


def recording_step(trainer: Trainer, batches: list, all_targets: float) -> float:
    steps_seen.append(1)
    if len(steps_seen) != 2:
        return plain_step(trainer, batches, all_targets)
    engine, update, done = trainer.engine, trainer.engine.step, []

    def record_then_update() -> None:
        done.append(1)
        if len(done) == len(batches):
            grads = {
                n: safe_get_full_grad(p)
                for n, p in engine.module.named_parameters()
                if p.requires_grad
            }
            if distributed.is_main():
                save_file(
                    {n: g.float().contiguous() for n, g in grads.items()}, os.environ["RECORD"]
                )
        update()

    engine.step = record_then_update
    try:
        return plain_step(trainer, batches, all_targets)
    finally:
        engine.step = update


class HandMade:
    """Two packs a step, the second without images; as a PackLoader of this rank."""

    skipped = refused = 0

    def __init__(self, run, processor) -> None:
        self.run, self.processor = run, processor

    def steps(self):
        samples = list(read_samples(self.run.data.train[0].path))
        with_images = [self.encode(s) for s in samples if s.images][:3]
        text = [self.encode(s) for s in samples if not s.images][:2]
        packs = [
            pack(with_images, self.processor.image_size),
            pack(text, self.processor.image_size),
        ]
        while True:
            yield packs[distributed.rank() :: distributed.world_size()]

    def peek(self, images: int) -> list:
        return next(self.steps())

    def encode(self, sample) -> Encoded:
        return encode(sample, sample.turns, self.processor, "here")

    def state_dict(self) -> dict:
        return {}


if __name__ == "__main__":
    Trainer.optimizer_step = recording_step
    if os.environ.get("HAND_MADE"):
        assembly.build_loaders = lambda run, processor, packing: (HandMade(run, processor), [])
    sys.exit(train.main())
