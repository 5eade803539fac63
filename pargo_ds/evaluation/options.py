"""The options of tools/evaluate.py. Imports no torch, so that faults are told at once."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add everything that tools/evaluate.py takes."""
    parser.add_argument("export", type=Path, nargs="?", metavar="EXPORT", help="exported folder")
    parser.add_argument(
        "shards",
        type=Path,
        nargs="?",
        metavar="SHARDS",
        help="held-out shards, or a folder with validation/",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    _add_options_of_shards(parser.add_argument_group("with SHARDS"))
    group = parser.add_argument_group("with benchmarks")
    _add_benchmarks(group)
    _add_judge(group)
    _add_page(group)
    _add_asking(group)


def fault_of(options: argparse.Namespace) -> str | None:
    """Return what is wrong with a command line whose options do not go together; None when they do."""
    ways = [
        options.shards,
        options.benchmark,
        options.score,
        options.submission,
        options.predictions,
        options.page,
        options.list,
    ]
    if sum(map(bool, ways)) != 1:
        return (
            "give EXPORT SHARDS, EXPORT --benchmark NAME=PATH, --score OUT, --submission OUT, "
            "--predictions OUT, --page OUT ... or --list"
        )
    if bool(options.page) != bool(options.to):
        return "--page OUT ... and --to FOLDER go together"
    if bool(options.predictions) != bool(options.table):
        return "--predictions OUT and --table NAME=TSV go together"
    if (options.shards or options.benchmark) and options.export is None:
        return "EXPORT is missing"
    if options.benchmark and options.out is None:
        return "--benchmark needs --out OUT, where the answers go"
    if options.against and not options.score:
        return "--against goes with --score"
    if options.judge and not (options.score and options.judge_model):
        return "--judge goes with --score OUT and --judge-model NAME"
    return None


def _add_options_of_shards(group: Any) -> None:
    """What is measured on held-out shards, and how much of it."""
    group.add_argument(
        "--run",
        type=Path,
        metavar="RUN.yaml",
        help="measure the texts that this run trains on (default: conversations, else captions)",
    )
    group.add_argument(
        "--samples", type=int, default=1000, metavar="N", help="at most so many (default 1000)"
    )
    group.add_argument(
        "--questions", type=int, default=400, metavar="N", help="at most so many (default 400)"
    )
    group.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="questions at once (default 16)"
    )


def _add_benchmarks(group: Any) -> None:
    """Which benchmarks are asked, and where their answers lie."""
    group.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME[:PROMPT]=PATH",
        help="its files, and how it is asked (official, llava, authors); may be repeated",
    )
    group.add_argument("--out", type=Path, metavar="OUT", help="where the answers go")
    group.add_argument("--score", type=Path, metavar="OUT", help="only the table of these answers")
    group.add_argument("--against", type=Path, metavar="OTHER", help="differences to these answers")
    group.add_argument(
        "--submission", type=Path, metavar="OUT", help="write the files that servers take"
    )
    group.add_argument(
        "--predictions", type=Path, metavar="OUT", help="write the files that VLMEvalKit evaluates"
    )
    group.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME=TSV",
        help="VLMEvalKit's file of a benchmark; may be repeated",
    )
    group.add_argument(
        "--model", default="pargo", metavar="NAME", help="in the files' names (default: pargo)"
    )


def _add_judge(group: Any) -> None:
    """The model that grades answers that no rule can read."""
    group.add_argument(
        "--judge",
        metavar="URL",
        help="with --score: ask this OpenAI-compatible endpoint (.../v1) to grade answers that no "
        "rule can read; its replies are kept, nothing is asked twice",
    )
    group.add_argument("--judge-model", metavar="NAME", help="the model that grades")
    group.add_argument(
        "--judge-prompt",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="what the judge is asked of this benchmark: a text with {question}, {truth} and "
        "{answer}; may be repeated",
    )
    group.add_argument(
        "--key-variable", metavar="NAME", help="the environment variable with the judge's key"
    )


def _add_page(group: Any) -> None:
    """Pages and lists of what there is."""
    group.add_argument(
        "--page",
        nargs="+",
        metavar="[NAME=]OUT",
        help="answers of several exports beside each other, the first one is compared to",
    )
    group.add_argument("--to", type=Path, metavar="FOLDER", help="where the page goes")
    group.add_argument(
        "--list", action="store_true", help="what there is, and which files it needs"
    )


def _add_asking(group: Any) -> None:
    """How questions are asked, and this process' share of them."""
    group.add_argument(
        "--images",
        choices=("real", "blank", "shuffled"),
        default="real",
        help="blank or shuffled: what the language alone earns",
    )
    group.add_argument(
        "--subset",
        action="store_true",
        help="take another number of questions than the official one; marks the table",
    )
    group.add_argument(
        "--batch", type=int, default=64, metavar="N", help="questions at once at most (default 64)"
    )
    group.add_argument(
        "--batch-tokens",
        type=int,
        default=32768,
        metavar="N",
        help="questions x the longest one at most (default 32768)",
    )
    group.add_argument("--device", metavar="NAME", help="default: this rank's GPU, else the CPU")
    group.add_argument("--rank", type=int, default=rank_option("RANK", "SLURM_PROCID", 0))
    group.add_argument(
        "--ranks", type=int, default=rank_option("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", 1)
    )


def rank_option(of_torchrun: str, of_slurm: str, alone: int) -> int:
    """Return what torchrun or srun says of this process; `alone` where neither started it."""
    return int(os.environ.get(of_torchrun) or os.environ.get(of_slurm) or alone)
