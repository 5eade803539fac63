"""Run pargo_ds.train and write what each micro-step and each step's end asked for to RECORD (JSON).

A line for each micro-batch: `collectives` and `waits` by operator, `hooks` by name, without what is done on tensors of
the CPU before they move to the device; and `control`, the collectives since the micro-batch before.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

from pargo_ds import distributed, train
from pargo_ds.training import trainer as trainers
from pargo_ds.training.trainer import Trainer
from tests.step_counts import StepCounts, counted_hooks

plain_micro_batch, plain_train = Trainer.micro_batch, Trainer.train
plain_inputs = trainers.device_inputs
lines: list[dict] = []
prepared = Counter()


def counted_inputs(*arguments):
    with StepCounts() as counts:
        inputs = plain_inputs(*arguments)
    prepared.clear()
    prepared.update(counts.waits)
    return inputs


def counted_micro_batch(trainer, batch, denominator):
    control = Counter(trainer.between.collectives)
    with StepCounts() as counts, counted_hooks(trainer.engine.module) as hooks:
        loss = plain_micro_batch(trainer, batch, denominator)
    lines.append(
        {
            "collectives": counts.collectives,
            "waits": counts.waits - prepared,
            "hooks": hooks,
            "control": control - trainer.counted,
        }
    )
    trainer.counted = Counter(trainer.between.collectives)
    return loss


def counted_train(trainer, first_step):
    with StepCounts() as trainer.between:
        trainer.counted = Counter()
        return plain_train(trainer, first_step)


if __name__ == "__main__":
    Trainer.micro_batch, Trainer.train = counted_micro_batch, counted_train
    trainers.device_inputs = counted_inputs
    train.try_what_follows = lambda run, processor: None  # the tiny export is tried elsewhere
    status = train.main()
    if int(os.environ["RANK"]) == 0 and not distributed.joined():
        Path(os.environ["RECORD"]).write_text(json.dumps(lines))
    sys.exit(status)
