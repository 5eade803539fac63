"""Run pargo_ds.train, and at every checkpoint let DeepSpeed save one of its own below PLAIN, too.

PLAIN/all has the frozen weights in it, PLAIN/trained has not.
"""

import os
import sys
from pathlib import Path

from pargo_ds import train
from pargo_ds.checkpoint.saver import Saver

saved_by_us = Saver.save


def save_both(saver: Saver, engine, **position) -> None:
    saved_by_us(saver, engine, **position)
    for name in ("all", "trained"):
        folder = Path(os.environ["PLAIN"], name)
        engine.save_checkpoint(str(folder), exclude_frozen_parameters=name == "trained")


if __name__ == "__main__":
    Saver.save = save_both
    sys.exit(train.main())
