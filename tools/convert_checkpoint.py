#!/usr/bin/env python
"""Convert checkpoints between formats, and compare what they hold.

  zero-to-hf CHECKPOINT OUT        a training checkpoint -> a Hugging Face folder that from_pretrained loads
  zero-to-megatron CHECKPOINT OUT  a training checkpoint -> a torch_dist checkpoint of megatron-core (LoRA merged)
  hf-to-megatron FOLDER OUT        an exported Hugging Face folder -> the same
  megatron-to-hf CHECKPOINT OUT    a torch_dist checkpoint -> a Hugging Face folder
  release-to-hf CHECKPOINT OUT     the authors' released checkpoint and InternLM2's folder -> a Hugging Face folder
  verify A B                       any two of these, DeepSpeed's own and the release: the same tensors (and logits)?
  rehash FOLDER                    accept an exported folder that was changed on purpose: write its SHA256SUMS anew

CHECKPOINT of a training run is a step folder (runs/NAME/checkpoints/step_00000500) or a run's folder (then its newest
checkpoint). verify exits with 0 when both hold the same model, with 1 when not; faulty input exits with 2.

examples:
  python tools/convert_checkpoint.py zero-to-hf runs/pretrain runs/pretrain/export
  python tools/convert_checkpoint.py zero-to-hf runs/finetune runs/finetune/export --merge-lora
  python tools/convert_checkpoint.py hf-to-megatron runs/finetune/export runs/finetune/megatron
  python tools/convert_checkpoint.py megatron-to-hf megatron_run/checkpoints OUT --base runs/finetune/export
  python tools/convert_checkpoint.py release-to-hf ParGo.pth OUT --llm internlm/internlm2-7b --merge-lora
  python tools/convert_checkpoint.py verify runs/finetune runs/finetune/megatron
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pargo_ds.convert.weights import WeightSource

RUN_HELP = "step folder, or a run's folder (its newest checkpoint)"
VERIFY_HELP = "Hugging Face folder, training, DeepSpeed or torch_dist checkpoint, or the release's file (with --llm)"
ZERO_HELP = RUN_HELP + "; or what DeepSpeed's own save_checkpoint wrote, with --run"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    zero = add_zero_commands(commands)
    add_megatron_commands(commands)
    add_release_command(commands)
    verify = add_verify_command(commands)
    rehash = commands.add_parser(
        "rehash", help="accept an exported folder that was changed on purpose"
    )
    rehash.add_argument("folder", type=Path, help="exported folder; its SHA256SUMS is written anew")
    options = parser.parse_args(arguments)
    if options.command == "verify" and (options.image is None) != (options.question is None):
        verify.error("--image and --question belong together")
    if options.command == "zero-to-hf" and not options.file_size > 0:
        zero.error(f"--file-size {options.file_size}: expected more than 0 GB")
    return options


def add_conversion(
    commands: Any, name: str, about: str, source: str, source_help: str
) -> argparse.ArgumentParser:
    """Add a command that converts `source` to OUT; return its parser."""
    parser = commands.add_parser(name, help=about)
    parser.add_argument(source, type=Path, help=source_help)
    parser.add_argument("out", type=Path, help="folder to write; must not exist without --force")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


def add_zero_commands(commands: Any) -> argparse.ArgumentParser:
    """Add the commands for training checkpoints; return the parser of zero-to-hf."""
    zero = add_conversion(
        commands,
        "zero-to-hf",
        "training checkpoint -> Hugging Face folder",
        "checkpoint",
        ZERO_HELP,
    )
    zero.add_argument(
        "--merge-lora",
        action="store_true",
        help="add LoRA into the LLM's weights; else adapter/ beside",
    )
    zero.add_argument(
        "--dtype", choices=("bf16", "fp32"), help="of the weights (default: the run's precision)"
    )
    zero.add_argument(
        "--file-size", type=float, default=4.0, metavar="GB", help="of one weight file (default 4)"
    )
    megatron = add_conversion(
        commands,
        "zero-to-megatron",
        "training checkpoint -> torch_dist checkpoint",
        "checkpoint",
        ZERO_HELP,
    )
    add_separate_layers(megatron)
    for parser in (zero, megatron):
        add_run(parser)
    return zero


def add_megatron_commands(commands: Any) -> None:
    """Add the commands between Hugging Face folders and torch_dist checkpoints."""
    forth = add_conversion(
        commands,
        "hf-to-megatron",
        "Hugging Face folder -> torch_dist checkpoint",
        "folder",
        "exported folder",
    )
    add_separate_layers(forth)
    back = add_conversion(
        commands,
        "megatron-to-hf",
        "torch_dist checkpoint -> Hugging Face folder",
        "checkpoint",
        "its folder",
    )
    add_base(back)


def add_release_command(commands: Any) -> None:
    """Add the command for the authors' release."""
    release = add_conversion(
        commands,
        "release-to-hf",
        "the authors' release -> Hugging Face folder",
        "checkpoint",
        "its file",
    )
    release.add_argument(
        "--merge-lora", action="store_true", help="add LoRA into the weights; else adapter/ beside"
    )
    add_release_arguments(release, needed=True)


def add_verify_command(commands: Any) -> argparse.ArgumentParser:
    """Add the command that compares two models; return its parser."""
    verify = commands.add_parser("verify", help="do two folders hold the same model?")
    verify.add_argument("first", type=Path, metavar="A", help=VERIFY_HELP)
    verify.add_argument(
        "second", type=Path, metavar="B", help="likewise; LoRA of checkpoints counts as merged"
    )
    verify.add_argument("--image", type=Path, help="compare the logits for this image ...")
    verify.add_argument("--question", help="... and this question")
    verify.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="largest difference that is allowed (default 0)",
    )
    add_release_arguments(verify, needed=False)
    add_run(verify)
    add_base(verify)
    return verify


def add_separate_layers(parser: argparse.ArgumentParser) -> None:
    """Add the option for the way in which Megatron names its layers."""
    parser.add_argument(
        "--separate-layers", action="store_true", help="a key per layer (non_homogeneous_layers)"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the option for the run file of a checkpoint without a manifest."""
    parser.add_argument(
        "--run", type=Path, metavar="RUN.yaml", help="run file, where DeepSpeed alone wrote it"
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add the option for what a checkpoint of Megatron lacks."""
    parser.add_argument(
        "--base", type=Path, help="exported folder with what a checkpoint of Megatron's own lacks"
    )


def add_release_arguments(parser: argparse.ArgumentParser, needed: bool) -> None:
    """Add what the checkpoint of the authors' release does not say of itself."""
    parser.add_argument(
        "--llm", required=needed, help="the release's InternLM2: its folder, or its name on the hub"
    )
    parser.add_argument("--revision", help="commit, tag or branch of --llm on the hub")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of the weights",
    )
    parser.add_argument(
        "--partial-tokens", type=int, default=288, help="of the learned tokens (default 288)"
    )
    parser.add_argument(
        "--heads", type=int, help="attention heads of the projector (default: its width / 64)"
    )
    parser.add_argument("--lora-alpha", type=int, default=512, help="LoRA's alpha (default 512)")
    parser.add_argument(
        "--vision",
        default="eva02_large_patch14_clip_336",
        help="timm's name of the vision tower (default eva02_large_patch14_clip_336)",
    )
    parser.add_argument(
        "--vision-weights",
        type=Path,
        metavar="PATH",
        help="file or folder of the tower, where CHECKPOINT lacks it",
    )


def run_of(options: argparse.Namespace) -> Any:
    """Return the loaded run file, or None when none was given."""
    from pargo_ds.config import load_config

    if not options.run:
        return None
    return load_config(options.run)


def release_facts(options: argparse.Namespace) -> Any:
    """Return what the options say of the authors' checkpoint."""
    from pargo_ds.convert.release.weights import ReleaseFacts

    return ReleaseFacts(
        options.partial_tokens,
        options.heads,
        options.lora_alpha,
        options.vision,
        options.vision_weights,
    )


def run_zero_to_hf(options: argparse.Namespace) -> int:
    """Export a ZeRO checkpoint; returns the exit status."""
    from pargo_ds.convert.zero.zero_to_hf import DTYPES, convert

    counts = convert(
        options.checkpoint,
        options.out,
        merge_lora=options.merge_lora,
        dtype=DTYPES.get(options.dtype),
        file_bytes=int(options.file_size * 1e9),
        run=run_of(options),
        force=options.force,
    )
    print(
        f"{options.out}: {counts['trained']:,} trained and {counts['frozen']:,} frozen parameters"
    )
    return 0


def write_megatron(
    options: argparse.Namespace, path: Path, open_source: Callable[[Path], WeightSource]
) -> int:
    """Write weights as a checkpoint of Megatron; returns the exit status."""
    from pargo_ds.convert.megatron.hf_to_megatron import to_megatron
    from pargo_ds.files.whole_output import check_free_to_write

    check_free_to_write(options.out.absolute(), force=options.force, sources=[path])
    source = open_source(path)
    count = to_megatron(
        source, options.out, separate_layers=options.separate_layers, force=options.force
    )
    print(f"{options.out}: {count} tensors")
    return 0


def run_zero_to_megatron(options: argparse.Namespace) -> int:
    """Convert a ZeRO checkpoint for Megatron; returns the exit status."""
    from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights

    return write_megatron(
        options, options.checkpoint, lambda path: CheckpointWeights(path, run_of(options))
    )


def run_hf_to_megatron(options: argparse.Namespace) -> int:
    """Convert an exported folder for Megatron; returns the exit status."""
    from pargo_ds.convert.hf_folder import HFFolder

    return write_megatron(options, options.folder, HFFolder)


def run_megatron_to_hf(options: argparse.Namespace) -> int:
    """Export a checkpoint of Megatron; returns the exit status."""
    from pargo_ds.convert.megatron.megatron_to_hf import megatron_to_hf

    count = megatron_to_hf(options.checkpoint, options.out, base=options.base, force=options.force)
    print(f"{options.out}: {count} tensors")
    return 0


def run_release_to_hf(options: argparse.Namespace) -> int:
    """Export the authors' checkpoint; returns the exit status."""
    from pargo_ds.convert.release.release_to_hf import release_to_hf

    count = release_to_hf(
        options.checkpoint,
        options.out,
        options.llm,
        release_facts(options),
        report=print,
        revision=options.revision,
        dtype=options.dtype,
        merge_lora=options.merge_lora,
        force=options.force,
    )
    print(f"{options.out}: {count} tensors")
    return 0


def open_release(options: argparse.Namespace, path: Path) -> WeightSource:
    """Open the weights of the authors' checkpoint for a comparison."""
    from pargo_ds.convert.release.llm import LLMFolder
    from pargo_ds.convert.release.release_to_hf import DTYPES
    from pargo_ds.convert.release.weights import ReleaseWeights

    llm = LLMFolder(options.llm, options.revision)
    return ReleaseWeights(
        path, llm, release_facts(options), dtype=DTYPES[options.dtype], merge_lora=True
    )


def run_verify(options: argparse.Namespace) -> int:
    """Compare two checkpoints; returns 0 when they are the same, else 1."""
    from pargo_ds.convert.verify import compare, compare_logits, open_weights, unproven

    release = partial(open_release, options) if options.llm else None
    first = open_weights(options.first, options.base, run_of(options), release)
    second = open_weights(options.second, options.base, run_of(options), release)
    for said in filter(None, map(unproven, (first, second))):
        print(said)
    comparison = compare(first, second)
    print(comparison)
    same = comparison.fits(options.tolerance)
    if options.image is not None:
        if comparison.only_first or comparison.only_second or comparison.misshapen:
            print("logits: not compared, the models differ in structure")
            return 1
        difference = compare_logits(first, second, options.image, options.question)
        print(f"logits: largest difference {difference:.3e}")
        same = same and difference <= options.tolerance
    if not same:
        print("NOT the same")
        return 1
    print("the same")
    return 0


def run_rehash(options: argparse.Namespace) -> int:
    """Write SHA256SUMS of a folder anew; returns the exit status."""
    from pargo_ds.convert.hf_folder import rehash

    print(f"{options.folder}: {rehash(options.folder)} files listed in SHA256SUMS")
    return 0


def main() -> int:
    """Run the command line. Return 0, 1 for a difference, or 2 after one line that says what is
    wrong.
    """
    options = parse_arguments()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # conversion is work for the CPU
    commands = {
        "zero-to-hf": run_zero_to_hf,
        "zero-to-megatron": run_zero_to_megatron,
        "hf-to-megatron": run_hf_to_megatron,
        "megatron-to-hf": run_megatron_to_hf,
        "release-to-hf": run_release_to_hf,
        "verify": run_verify,
        "rehash": run_rehash,
    }
    try:
        return commands[options.command](options)
    except (ValueError, OSError) as error:
        print(f"convert_checkpoint: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
