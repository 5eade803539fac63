"""Make detailed captions of images and of their parts, and keep those that fit (ParGoCap's way)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pargo_ds.captioning.ask.asking import Account, RequestPolicy
from pargo_ds.captioning.ask.batch_files import forget, read_results, write_batches
from pargo_ds.captioning.ask.captions import jobs_of, write_captions, write_truth
from pargo_ds.captioning.ask.endpoint import check_address, read_key
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.online import BUDGET, Online, ask, pilot_sides
from pargo_ds.captioning.ask.prompt import read_prompt
from pargo_ds.captioning.ask.request import Parameters
from pargo_ds.captioning.decide.decide import Settings, decide
from pargo_ds.captioning.describe.describe import describe, make_captioner, parse_captioner
from pargo_ds.captioning.options import (
    add_caption,
    add_decide,
    add_plants,
    add_score,
    add_select,
)
from pargo_ds.captioning.photos.nsfw import check_model
from pargo_ds.captioning.report.report import money_rows, report
from pargo_ds.captioning.report.tables import decision_tables
from pargo_ds.captioning.run_files import RunFolder, needed, read_object
from pargo_ds.captioning.score.pooled import score_on_ray
from pargo_ds.captioning.score.score import score
from pargo_ds.captioning.score.scorers import make_scorer
from pargo_ds.captioning.select.candidates import Candidates
from pargo_ds.captioning.select.select import select
from pargo_ds.captioning.text_rules import TextRules
from pargo_ds.errors import CaptionError, MachineFault
from pargo_ds.inspection.tables import as_text

EXAMPLES = """\
the stages, each of which reads what the one before has written into RUN (docs/captioning.md):
  python tools/caption.py select webdataset RUN 'laion/*.tar' --share 0.02 --number 10000
  python tools/caption.py caption RUN --endpoint https://api.openai.com/v1 --model gpt-4o-mini \\
      --key-variable OPENAI_API_KEY --price 0.15,0.60 --budget 20
  python tools/caption.py score RUN --scorers conse,learned
  python tools/caption.py decide RUN
  python tools/caption.py report RUN
  python tools/build_shards.py captions data/captions RUN --validation 0.01

without an endpoint or a key, on composed scenes:
  python tools/build_shards.py scenes runs/scenes
  python tools/caption.py all shards RUN runs/scenes/train --captioner truth

The same command goes on after a kill; nothing that was answered is asked again.
Exit status 3: the budget is not enough.
"""
FORM = argparse.RawDescriptionHelpFormatter
OUT_OF_BUDGET = 3


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; `options.run` is the function that does the work."""
    parser = argparse.ArgumentParser(
        "caption.py", description=__doc__, epilog=EXAMPLES, formatter_class=FORM
    )
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    add_select(stages, "select", "choose images of any source that build_shards reads", run_select)
    _add_stage(stages, "caption", "ask for the captions", run_caption, add_caption)
    _add_stage(stages, "score", "score captions and parts", run_score, add_score, add_plants)
    _add_stage(
        stages, "decide", "keep what nothing speaks against", run_decide, add_decide, add_plants
    )
    _add_stage(stages, "report", "write the page, the numbers and the dataset card", run_report)
    more = (add_caption, add_score, add_decide, add_plants)
    add_select(stages, "all", "all stages, one after another", run_all, *more)
    return parser.parse_args(arguments)


def _add_stage(stages: Any, name: str, about: str, run: Any, *adds: Any) -> None:
    parser = stages.add_parser(name, help=about, description=about.capitalize() + ".")
    parser.set_defaults(run=run)
    parser.add_argument("out", metavar="RUN", help="the run's folder")
    for add in adds:
        add(parser)


def run_select(options: argparse.Namespace) -> int:
    """Choose the images."""
    if options.nsfw is not None:
        check_model(options.nsfw)
    candidates = Candidates(
        source=options.source_name,
        license=options.license,
        longest_side=options.longest_side,
        seed=options.seed,
        share=options.share,
        shortest_side=options.shortest_side,
        aspect=options.aspect,
        english=not options.any_language,
        nsfw=options.nsfw,
    )
    funnel = select(
        RunFolder(Path(options.out)),
        options.make(options),
        candidates,
        number=options.number,
        distance=options.near,
        nsfw=options.nsfw_from,
        workers=options.workers,
        part=options.part,
    )
    if funnel is None:
        print(
            f"part {options.part[0]} of {options.part[1]} is there; then the command without --part"
        )
        return 0
    for name, count in funnel.items():
        print(f"  {name:<24} {count:>12,}")
    return 0


def run_caption(options: argparse.Namespace) -> int:
    """Get the captions; returns 3 when the budget is not enough."""
    run = RunFolder(Path(options.out))
    needed(run.selected, "select")
    name, _ = parse_captioner(options.captioner)
    if name == "truth":
        _print_outcomes(write_truth(run, options.wrong))
        return 0
    if name != "endpoint":
        captioner = make_captioner(options.captioner, options.max_tokens)
        _print_outcomes(describe(run, captioner))
        return 0
    online = _online(options)
    with Ledger(options.ledger or run.ledger) as ledger:
        account = _bought(options, run, ledger, online)
        outcomes = write_captions(run, ledger, online.prompt, online.parameters)
        _print_outcomes(outcomes)
        print(f"  spent ${ledger.spent:.4f} of ${online.limit:g}, of it ${ledger.unknown_cost:.4f} perhaps; "
              f"{len(ledger.maybe_paid)} requests were perhaps paid without an answer ({run.money})")  # fmt: skip
    if account is None:
        return 0
    if account.failed and not account.stopped:
        reason, _ = account.failed.most_common(1)[0]
        account.stopped = (
            f"{sum(account.failed.values()):,} requests got no answer (most often: {reason}); the same command "
            "asks for these again"
        )
    if not account.stopped:
        return 0
    print(f"caption.py: stopped: {account.stopped}", file=sys.stderr)
    if account.stopped.startswith(BUDGET):
        return OUT_OF_BUDGET
    return 130 if account.stopped == "interrupted" else 2


def _online(options: argparse.Namespace) -> Online:
    needed_options = ["model", "price", "budget"]
    if not _is_offline(options):
        needed_options.insert(0, "endpoint")
    missing = [f"--{name}" for name in needed_options if getattr(options, name) is None]
    if missing:
        raise CaptionError(
            f"{', '.join(missing)} must be given: captions are bought. For one's own server the price is 0,0 and the "
            "budget 0; --captioner truth, detector and pargo:FOLDER cost nothing"
        )
    if (
        not options.budget >= 0
        or options.at_once < 1
        or options.tries < 1
        or options.max_tokens < 1
    ):
        raise CaptionError(
            "--budget is at least 0; --at-once, --tries and --max-tokens are at least 1"
        )
    parameters = Parameters(
        options.model, options.sent_side, options.max_tokens, options.temperature
    )
    policy = RequestPolicy(options.tries, options.pause, options.at_once, options.requests_per_minute,
                    options.tokens_per_minute)  # fmt: skip
    return Online(
        address=check_address(options.endpoint) if options.endpoint else "",
        key=read_key(options.key_variable),
        prompt=read_prompt(options.prompt),
        parameters=parameters,
        price=options.price,
        limit=options.budget,
        policy=policy,
        timeout_s=options.timeout,
        until_budget=options.until_budget,
    )


def _is_offline(options: argparse.Namespace) -> bool:
    return bool(options.write_batches or options.read_results or options.forget_batch)


def _bought(
    options: argparse.Namespace, run: RunFolder, ledger: Ledger, online: Online
) -> Account | None:
    if options.forget_batch:
        print(
            f"{forget(options.forget_batch, ledger):,} requests of {options.forget_batch} are free again"
        )
    if options.read_results:
        _print_outcomes(read_results(options.read_results, ledger, online.price))
    if options.write_batches:
        written = write_batches(jobs_of(run), options.write_batches, ledger, online.prompt, online.parameters,
                                price=online.price, limit=online.limit)  # fmt: skip
        print("\n".join(map(str, written)) or "nothing is left to ask")
    if _is_offline(options):
        return None
    if options.pilot:
        return pilot_sides(run, ledger, online, options.pilot, print)
    return ask(run, ledger, online)


def run_score(options: argparse.Namespace) -> int:
    """Score with each scorer."""
    run, names = RunFolder(Path(options.out)), options.scorers.split(",")
    if options.actors is None:
        scorers = [make_scorer(name) for name in names]
        score(run, scorers, plants=options.plants, part=options.score_part)
        return 0
    if options.score_part != (0, 1):
        raise CaptionError("--actors share all the work among them; --score-part is for arrays")
    score_on_ray(run, names, actors=options.actors, gpus=options.gpus_per_actor,
                 plants=options.plants)  # fmt: skip
    return 0


def run_decide(options: argparse.Namespace) -> int:
    """Decide about all captions, and tell how much of the planted faults was found."""
    text = TextRules(
        least_words=options.least_words,
        most_words=options.most_words,
        least_global_words=options.least_global_words,
        most_part_words=options.most_part_words,
        most_repeated=options.most_repeated,
        english=not options.not_english,
    )
    settings = Settings(
        text=text,
        lowest=options.lowest,
        lowest_parts=options.lowest_parts,
        votes=options.votes,
        least_parts=options.least_parts,
    )
    names = None
    if options.use is not None:
        names = [name for name in options.use.split(",") if name != "none"]
    account = decide(RunFolder(Path(options.out)), settings, names, plants=options.plants)
    print("\n".join(map(as_text, decision_tables(account))))
    return 0


def run_report(options: argparse.Namespace) -> int:
    """Write report.html, report.json and README.md."""
    run = RunFolder(Path(options.out))
    found = report(run)
    for name, text in money_rows(read_object(run.money), found["decisions"]["kept"]):
        print(f"  {name:<36} {text}")
    print(f"  {run.path / 'report.html'}, report.json, README.md")
    return 0


def run_all(options: argparse.Namespace) -> int:
    """Run all stages; the first that is not finished ends it."""
    stages = [run_caption, run_score, run_decide, run_report]
    if options.part != (0, 1) or options.pilot or _is_offline(options):
        raise CaptionError("all does all: --part, --pilot and batches go with the single stages")
    name, _ = parse_captioner(options.captioner)
    if name == "endpoint":
        _online(options)  # its faults before the work
    for stage in [run_select, *stages]:
        print(f"{stage.__name__.removeprefix('run_')}:", flush=True)
        status = stage(options)
        if status:
            return status
    return 0


def _print_outcomes(outcomes: Any) -> None:
    for name, count in sorted(outcomes.items(), key=lambda item: -item[1]):
        print(f"  {name:<24} {count:>12,}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    try:
        return options.run(options)
    except (ValueError, MachineFault, ModuleNotFoundError, OSError) as error:
        print(f"caption.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("caption.py: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
