#!/usr/bin/env python3
"""Train variants from several seeds alike, ask them the same questions, and compare them with intervals.

STUDY.yaml says which variants, seeds, data and questions; shipped ones are ds_configs/study_*.yaml. A cell is one
variant and one seed: all stages, export, questions. The same command continues a study that was ended, runs what was
added to the file, and writes the report of what is finished: report.html, report.png, report.json in the size's
folder. docs/study.md says how to read it.

examples:
  python tools/study.py ds_configs/study_projectors.yaml --quick --dry-run     # cells, costs, time; runs nothing
  python tools/study.py ds_configs/study_projectors.yaml --quick
  python tools/study.py ds_configs/study_projectors.yaml --size small
  python tools/study.py ds_configs/study_ablation.yaml --take runs/study/projectors/small   # has ParGo's cells already
  python tools/study.py ds_configs/study_projectors.yaml --size gpu --list     # numbers of the cells left to run
  python tools/study.py ds_configs/study_projectors.yaml --size gpu --cell 3   # one of them; slurm/study.sh does it
  python tools/study.py ds_configs/study_projectors.yaml --size full --report --against published
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pargo_ds.study.cells import Cell
    from pargo_ds.study.study_file import Size, Study


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="what is compared")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--size", choices=("quick", "small", "gpu", "full"), default="small", help="(default small)"
    )
    sizes.add_argument(
        "--quick", action="store_const", dest="size", const="quick", help="--size quick"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print cells, costs and time")
    what.add_argument("--list", action="store_true", help="print the cells without a result")
    what.add_argument("--cell", type=int, metavar="N", help="run this cell only")
    what.add_argument("--report", action="store_true", help="run nothing; report what is finished")
    parser.add_argument(
        "--only", action="append", metavar="VARIANT", help="run this variant only (repeat for more)"
    )
    parser.add_argument(
        "--take",
        type=Path,
        metavar="FOLDER",
        help="copy finished cells of the same settings from another study, such as ParGo's",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="of the trainer (default: all GPUs, or one where cells run side by side; 2 without any)",
    )
    parser.add_argument(
        "--against", choices=("published",), help="print published rows beside the study's"
    )
    return parser.parse_args(arguments)


def run_study(options: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the number of cells that failed. Raises ValueError
    for faults of the user, MachineFault where a single cell failed otherwise.
    """
    # Below, because torch takes seconds and --help should not.
    from pargo_ds.study.cells import cells_of, check_equal, sizes_of
    from pargo_ds.study.run_cell import run_cell
    from pargo_ds.study.runner import check_data, missing, plan
    from pargo_ds.study.study_file import load_study

    study = load_study(options.study)
    size = study.size(options.size)
    cells = cells_of(study, options.size)
    if options.list:
        print(*(f"{number} {cells[number]}" for number in missing(cells)), sep="\n")
        return 0
    if not options.report:
        if unknown := set(options.only or ()) - set(size.variants):
            raise ValueError(
                f"--only {', '.join(sorted(unknown))}: there is {', '.join(size.variants)}"
            )
        sizes = sizes_of(cells)
        check_equal(size, cells, sizes)
        if options.take and not options.dry_run:
            from pargo_ds.study.cell_result import take_results

            taken = ", ".join(map(str, take_results(options.take, cells, size)))
            print(f"taken from {options.take}: {taken or 'nothing; no cell has these settings'}")
        absent = check_data(cells, size)
        said = f"not on this machine: {', '.join(absent)}; docs/study.md says how they are made"
        if options.dry_run:
            print(plan(cells, size, sizes))
            if absent:
                print(said)
            return 0
        if absent:
            raise ValueError(said)
    if options.cell is not None:
        if not 0 <= options.cell < len(cells):
            raise ValueError(f"--cell {options.cell}: the cells are 0 to {len(cells) - 1}")
        run_cell(cells[options.cell], size, options.processes)
        return 0
    failed = 0
    if not options.report:
        failed = run_missing(options, cells, size)
    report(options, study, cells, size)
    return failed


def run_missing(options: argparse.Namespace, cells: list[Cell], size: Size) -> int:
    """Run the cells without a result with a progress bar; the number that failed."""
    from tqdm import tqdm

    from pargo_ds.study.run_cell import command_of
    from pargo_ds.study.runner import duration, missing, run_all

    more: list[str] = []
    if options.processes:
        more += ["--processes", str(options.processes)]
    commands = [command_of(options.study, options.size, n, more) for n in range(len(cells))]
    todo = [n for n in missing(cells) if cells[n].variant in (options.only or size.variants)]
    failed = 0
    every = 0.1 if sys.stderr.isatty() else 60  # seconds: a log gets a line a minute
    title = f"{len(todo)} of {len(cells)} cells"
    # tqdm's own time left knows nothing of cells that run side by side.
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    # With miniters of its own choice tqdm would print nothing until the next cell has ended.
    with tqdm(
        total=len(todo), unit="cell", desc=title, mininterval=every, miniters=0, bar_format=shape
    ) as bar:
        for said in run_all(todo, cells, size, commands):
            if isinstance(said, str):
                failed += 1
                tqdm.write(said, file=sys.stderr)
                continue
            bar.set_postfix_str(
                f"{'; '.join(said.running)}: about {duration(said.seconds_left)} left",
                refresh=False,
            )
            bar.update(said.done - bar.n)
    return failed


def report(options: argparse.Namespace, study: Study, cells: list[Cell], size: Size) -> None:
    """Write and print the report of the finished cells."""
    from pargo_ds.study.cells import size_folder
    from pargo_ds.study.findings import find
    from pargo_ds.study.report import summary, write_report

    findings = find(study, cells, size)
    paths = write_report(findings, size_folder(study, options.size))
    print(summary(findings))
    if options.against:
        from pargo_ds.study.published import beside_published

        print(beside_published(findings.scores))
    print("written: " + ", ".join(map(str, paths)))


def interrupt(*_: Any) -> None:
    """SIGTERM ends a study as Ctrl-C does: its processes are told, and waited for."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0; 1 where cells failed and may do better next time; 2 for a
    fault of the user.
    """
    from pargo_ds.errors import MachineFault

    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return 1 if run_study(options) else 0
    except (ValueError, FileNotFoundError) as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        return 2
    except MachineFault as error:
        print(f"study.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
