"""One stage in one process without DeepSpeed, for cells of small models on CPUs.

`python -m pargo_ds.study.one_process RUN.yaml --set a.b=c ...` leaves what pargo_ds.train and the
converter leave: metrics.jsonl and the export. Model, data, loss, parameter groups and schedule are
those of pargo_ds.learning, whose losses are the trainer's (tests/learning/test_trial.py). What
trains is float32 here, computed under autocast; DeepSpeed keeps bf16 beside a float32 copy.

Nothing is saved on the way: a stage of minutes that was killed begins anew, and ends with the same
numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import nn

from pargo_ds import assembly
from pargo_ds.config import load_config
from pargo_ds.convert.hf_folder import finish_folder
from pargo_ds.errors import comes_again
from pargo_ds.files.whole_output import whole_output
from pargo_ds.learning.trial import Measured, prepare, write_lines
from pargo_ds.settings_file import format_yaml

METRICS = "metrics.jsonl"


def train_and_export(run_file: Path, overrides: list[str], export: Path) -> None:
    """Train the stage and write its export, whole or absent, LoRA merged.

    Raises ConfigError or ValueError for a run that does not fit, FloatingPointError for a loss that
    is no number.
    """
    run = load_config(run_file, overrides)
    trial = prepare(run)
    run.run_dir.mkdir(parents=True, exist_ok=True)
    config = run.run_dir / "config.yaml"
    config.write_text(format_yaml(run.model_dump(mode="json")), encoding="utf-8")
    write_lines(trial, run.run_dir / METRICS, every=run.validation.every)
    write_export(trial, export)


def write_export(trial: Measured, out: Path) -> None:
    """Write the trained model as tools/convert_checkpoint.py zero-to-hf --merge-lora leaves it, but
    for the model card.
    """
    model, processor = trial.model, trial.processor
    merge_lora(model.llm)
    assembly.cast_as_loaded(model, assembly.dtype_of(trial.run))
    model.generation_config.eos_token_id = processor.stop_token_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    with whole_output(out, force=True) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
        finish_folder(aside)


@torch.no_grad()
def merge_lora(llm: nn.Module) -> None:
    """Add each adapter to the weight that it lies on, and put that in its place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(llm.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(llm.get_submodule(parent), last, layer.get_base_layer())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 2 for a fault that would come again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--export", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    try:
        train_and_export(options.run_file, options.set, options.export)
    except (ValueError, FloatingPointError, FileNotFoundError) as error:
        print(f"one_process: error: {error}", file=sys.stderr)
        return 2 if comes_again(error) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
