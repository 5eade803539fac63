#!/usr/bin/env python3
"""Measure an exported model: on held-out shards, or on benchmarks by their own rules.

EXPORT is what `tools/convert_checkpoint.py zero-to-hf` wrote. With SHARDS: held-out loss, and right answers by type of
question; SHARDS is a folder of shards, or one with validation/ and train/ in it; the training questions give the
baseline that does not look ("blind"). With --benchmark: asks into OUT, then prints the table; docs/evaluation.md.

Any number of processes may ask into the same OUT, one for each GPU: each gets --rank and --ranks, or is started by
torchrun or srun. What was ended goes on with the same command, on any number of ranks.

examples:
  python tools/evaluate.py runs/demo_finetune/export runs/demo/shards
  python tools/evaluate.py runs/pretrain/export data/captions/validation --run runs/pretrain/config.yaml \\
      --json loss.json
  python tools/evaluate.py --list
  python tools/evaluate.py runs/finetune/export --benchmark mme=data/MME --benchmark pope=data/POPE \\
      --out runs/finetune/asked
  python tools/evaluate.py runs/finetune/export --benchmark mme=data/MME --images shuffled --out runs/finetune/blind
  python tools/evaluate.py --score runs/finetune/asked --against runs/other/asked
  python tools/evaluate.py --score runs/finetune/asked --judge https://api.openai.com/v1 --judge-model gpt-4.1 \\
      --key-variable OPENAI_API_KEY
  python tools/evaluate.py --submission runs/finetune/asked
  python tools/evaluate.py --predictions runs/finetune/asked --table mmbench=MMBench_DEV_EN.tsv --model pargo
  python tools/evaluate.py --page ParGo=runs/finetune/asked Q-Former=runs/other/asked --to runs/results
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pargo_ds.evaluation.options import add_options, fault_of, rank_option

NOT_COMPLETE = 3
"""Status when some units have not been answered yet."""
Way = Callable[[argparse.Namespace], tuple[dict[str, Any], str]]
"""Command line -> (figures for --json, what is printed)."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a usage error ends the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    fault = fault_of(options)
    if fault is not None:
        parser.error(fault)
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all figures on shards. Raises ValueError for inputs that do not fit."""
    from tqdm import tqdm

    from pargo_ds.config import load_config
    from pargo_ds.data.shards.mds import read_samples
    from pargo_ds.data.shards.splits import split_folders
    from pargo_ds.evaluation.exported import load_exported
    from pargo_ds.evaluation.validation import (
        question_figures,
        texts_of,
        validation_loss,
    )

    validation, train = split_folders(options.shards)
    data = None
    if options.run is not None:
        data = load_config(options.run).data
    samples = list(itertools.islice(read_samples(validation), options.samples))
    model, processor = load_exported(options.export)
    with tqdm(total=len(samples), desc="held-out loss", disable=None) as bar:
        loss = validation_loss(
            model,
            processor,
            samples,
            data or texts_of(samples),
            where=str(validation),
            progress=bar.update,
        )
    asked = question_figures(
        model, processor, samples, train, most=options.questions, batch_size=options.batch_size
    )
    return {
        "export": str(options.export),
        "shards": str(validation),
        "validation": loss,
        "questions": asked,
    }


def read_benchmarks(options: argparse.Namespace) -> list[tuple[Any, str, list[Any]]]:
    """Read (benchmark, name of its prompt, its questions) of each --benchmark: all files are read
    before the model is. Raises ValueError for whatever does not fit.
    """
    from pargo_ds.evaluation.benchmark import read_items
    from pargo_ds.evaluation.benchmarks import benchmark_named

    found = []
    for argument in options.benchmark:
        said, source = _named_path("--benchmark", argument)
        name, _, prompt = said.partition(":")
        benchmark = benchmark_named(name)
        prompt = prompt or next(iter(benchmark.prompts))
        if prompt not in benchmark.prompts:
            known = ", ".join(benchmark.prompts)
            raise ValueError(f"{name} has no prompt '{prompt}': there are {known}")
        items = read_items(benchmark, source, benchmark.prompts[prompt], options.subset)
        found.append((benchmark, prompt, items))
    return found


def _named_path(option: str, argument: str) -> tuple[str, Path]:
    name, equals, path = argument.partition("=")
    if not equals or not path:
        raise ValueError(f"{option} {argument}: expected NAME=PATH")
    return name, Path(path).expanduser()


def ask_all(options: argparse.Namespace) -> None:
    """Ask this rank's share of every benchmark. Raises ValueError for inputs that do not fit."""
    benchmarks = read_benchmarks(options)
    # Below, because torch takes seconds and faults of the files should be told at once.
    from tqdm import tqdm

    from pargo_ds.evaluation import ask
    from pargo_ds.evaluation.exported import load_exported
    from pargo_ds.evaluation.store import Store

    settings = ask.AskSettings(
        images=options.images, rows=options.batch, tokens=options.batch_tokens
    )
    weights = ""
    if options.export.is_dir():
        weights = ask.weights_digest(options.export)
    model, processor = load_exported(options.export, options.device or _own_gpu())
    for benchmark, prompt_name, items in benchmarks:
        prompt = benchmark.prompts[prompt_name]
        units = ask.plan(processor, items, prompt, settings)
        store = Store(options.out / benchmark.name)
        asked = ask.fingerprint(
            weights, model, processor, items, units, benchmark, prompt_name, settings
        )
        store.open(asked, items, writer=f"rank{options.rank}")
        own = store.missing(ask.units_of_rank(len(units), options.rank, options.ranks))
        total = sum(len(units[number]) for number in own)
        title = f"{benchmark.title}, rank {options.rank}"
        with tqdm(desc=title, total=total, unit="q", disable=None) as bar:
            ask.ask(
                model,
                processor,
                items,
                units,
                prompt,
                store,
                load=ask.image_loader(items, settings.images),
                rank=options.rank,
                ranks=options.ranks,
                progress=bar.update,
            )


def _own_gpu() -> str | None:
    """The GPU of this rank of the node; None leaves the choice to load_exported."""
    import torch

    local = rank_option("LOCAL_RANK", "SLURM_LOCALID", 0)
    gpus = torch.cuda.device_count()
    if not gpus:
        return None
    return f"cuda:{local % gpus}"


def score_all(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Score a folder of answers; the scores are written beside them, too."""
    from pargo_ds.evaluation.score import score_folder
    from pargo_ds.files.figures_json import figures_json
    from pargo_ds.files.whole_file import write_whole

    scores = score_folder(out, options.against)
    if options.against is None:
        write_whole(out / "scores.json", figures_json(scores), f"rank{options.rank}")
    return scores


def judge_all(options: argparse.Namespace) -> None:
    """Have a judge grade what is not graded yet. Raises ValueError when it gives no verdicts."""
    import asyncio

    from tqdm import tqdm

    from pargo_ds.captioning.ask.endpoint import Endpoint, read_key
    from pargo_ds.evaluation.ask_judge import judge_folder

    prompts = dict(_named_path("--judge-prompt", argument) for argument in options.judge_prompt)

    async def go() -> None:
        async with Endpoint(options.judge, read_key(options.key_variable)) as endpoint:
            with tqdm(desc=f"judged by {options.judge_model}", unit="answer", disable=None) as bar:
                await judge_folder(
                    options.score,
                    endpoint.ask,
                    options.judge_model,
                    prompts,
                    progress=bar.update,
                )

    asyncio.run(go())


def list_benchmarks() -> str:
    """Return what there is, from the benchmarks' own records."""
    from pargo_ds.evaluation.benchmarks import BENCHMARKS

    lines = []
    for name, benchmark in BENCHMARKS.items():
        numbers = " or ".join(f"{number:,}" for number in benchmark.questions) or "any number of"
        lines += [
            f"{name}: {benchmark.title}, {numbers} questions",
            f"    files    {benchmark.files}",
            f"    from     {benchmark.source}",
            f"    licence  {benchmark.licence}",
            f"    rule     {benchmark.rule}",
            f"    prompts  {', '.join(benchmark.prompts)}",
        ]
    return "\n".join(
        [*lines, "Sources and licences were noted from memory: read them at the source."]
    )


def evaluate_benchmarks(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return (scores, table) after asking, or of what was asked before."""
    from pargo_ds.evaluation.score import report, unscored

    if options.benchmark:
        ask_all(options)
    if options.judge:
        judge_all(options)
    out = options.score or options.out
    scores = score_all(options, out)
    return scores, "\n\n".join(filter(None, [report(scores), *unscored(out, options.against)]))


def write_submissions(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return ({"written": files}, the same as text)."""
    from pargo_ds.evaluation.submission import write_submissions

    written = [str(path) for path in write_submissions(options.submission)]
    return {"written": written}, "\n".join(written)


def write_predictions(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """({"written": files}, the same as text)."""
    from pargo_ds.evaluation.vlmevalkit import write_predictions

    tables = dict(_named_path("--table", argument) for argument in options.table)
    written = [str(path) for path in write_predictions(options.predictions, tables, options.model)]
    return {"written": written}, "\n".join(written)


def write_page(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return (everything that the page shows, its Markdown rows and the files)."""
    from dataclasses import asdict

    from pargo_ds.inspection.results import collect, named_folders
    from pargo_ds.inspection.results_page import markdown, write_results

    results = collect(named_folders(options.page))
    written = "\n".join(map(str, write_results(results, options.to)))
    return asdict(results), f"{markdown(results)}\n{written}"


def evaluate_shards(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return (figures, table) on shards."""
    from pargo_ds.evaluation.validation import table

    figures = measure(options)
    return figures, table(figures)


def _way_of(options: argparse.Namespace) -> Way:
    """What the command line asks for; `parse_arguments` has seen to it that it is one thing."""
    if options.page:
        return write_page
    if options.submission:
        return write_submissions
    if options.predictions:
        return write_predictions
    if options.shards is not None:
        return evaluate_shards
    return evaluate_benchmarks


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, 2 for inputs that do not fit, 3 when answers are missing."""
    options = parse_arguments(arguments)
    if options.list:
        print(list_benchmarks())
        return 0
    from pargo_ds.evaluation.store import MissingAnswersError

    try:
        figures, shown = _way_of(options)(options)
    except MissingAnswersError as error:
        # A rank that has done its share is no failure while others still ask.
        if options.benchmark and options.ranks > 1:
            print(f"rank {options.rank} of {options.ranks} has asked its share. {error}")
            return 0
        print(f"evaluate.py: {error}", file=sys.stderr)
        return NOT_COMPLETE
    except ValueError as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    print(shown)
    if options.json is not None:
        from pargo_ds.files.figures_json import figures_json

        options.json.write_text(figures_json(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
