"""The command line of the stages: the options of tools/caption.py."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from pargo_ds.captioning.ask.budget import Price
from pargo_ds.captioning.ask.prompt import DEFAULT
from pargo_ds.captioning.decide.decide import Settings
from pargo_ds.captioning.score.scorers import SCORERS
from pargo_ds.captioning.select.candidates import ShardSource
from pargo_ds.captioning.select.select import NSFW
from pargo_ds.captioning.text_rules import TextRules
from pargo_ds.data.sources.options import add_sources, fraction, part_of_array


def add_select(stages: Any, name: str, about: str, run: Any, *adds: Any) -> None:
    """Add the command with one sub-command for each source."""
    parser = stages.add_parser(name, help=about, description=about.capitalize() + ".")
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    def more(parser_of_source: Any) -> None:
        for add in (add_choice, *adds):
            add(parser_of_source)

    add_sources(sources, run, more)
    shards = sources.add_parser("shards", help="folders of shards", description="Read shards.")
    shards.set_defaults(run=run, make=lambda options: ShardSource.of(options.files))
    shards.add_argument("out", metavar="RUN", help="the run's folder")
    shards.add_argument("files", metavar="FOLDER", nargs="+", help="local ones, or s3://...")
    shards.set_defaults(source_name="", license="")
    shards.add_argument("--longest-side", type=int, metavar="N", help="store larger images smaller")
    shards.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    shards.add_argument("--part", type=part_of_array, default=(0, 1), metavar="i/n")
    more(shards)


def add_choice(parser: Any) -> None:
    """Add the options of choosing images."""
    group = parser.add_argument_group("choice of images")
    group.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    group.add_argument(
        "--share",
        type=fraction,
        default=1.0,
        help="of all images (default 1: all); stays when data grows",
    )
    group.add_argument(
        "--number", type=int, metavar="N", help="of those, the N with the lowest draws"
    )
    group.add_argument(
        "--shortest-side", type=int, default=200, metavar="N", help="in pixels (default 200)"
    )
    group.add_argument(
        "--aspect", type=float, default=3.0, help="longer side over shorter (default 3)"
    )
    group.add_argument(
        "--nsfw", metavar="FILE.onnx",
        help="leave out what open_nsfw scores as not safe for work; from tools/fetch_caption_parts.py "
        "(default: images are not looked at for it)",
    )  # fmt: skip
    group.add_argument(
        "--nsfw-from", type=fraction, default=NSFW, metavar="SCORE",
        help=f"that is left out (default {NSFW})",
    )  # fmt: skip
    group.add_argument("--any-language", action="store_true", help="do not look at the alt text")
    group.add_argument(
        "--near", type=int, default=3, metavar="BITS",
        help="of 64, in which near duplicates differ at most (default 3; -1: keep them)",
    )  # fmt: skip


def add_caption(parser: Any) -> None:
    """Add the options of asking for captions."""
    _add_captioner(parser)
    _add_pace(parser)
    _add_batches(parser)


def _add_captioner(parser: Any) -> None:
    """Who is asked what, and what it may cost."""
    group = parser.add_argument_group("captioner")
    group.add_argument(
        "--captioner", default="endpoint", metavar="NAME",
        help="endpoint (default). These cost nothing: truth: composed scenes say what is in them; detector "
        "(or detector:FOLDER): things that a detector sees in photographs, in a template; pargo:FOLDER: a "
        "ParGo export, global captions only",
    )  # fmt: skip
    group.add_argument(
        "--wrong", type=float, default=0.0, metavar="SHARE",
        help="of truth's captions are of another scene, which shows what a filter is worth (default 0)",
    )  # fmt: skip
    group.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1"
    )
    group.add_argument("--model", metavar="NAME")
    group.add_argument(
        "--key-variable", metavar="NAME", help="environment variable that holds the key"
    )
    group.add_argument(
        "--prompt", type=Path, default=DEFAULT, metavar="FILE", help=f"(default {DEFAULT.name})"
    )
    group.add_argument(
        "--price",
        type=_price,
        metavar="IN,OUT",
        help="dollars a million tokens; 0,0 for own servers",
    )
    group.add_argument(
        "--budget",
        type=float,
        metavar="DOLLARS",
        help="never exceeded, by all that the ledger holds",
    )
    group.add_argument(
        "--until-budget", action="store_true", help="begin even when the estimate exceeds it"
    )
    group.add_argument("--pilot", metavar="SIDE,SIDE,...", type=_sides,
                       help="only measure the price of 32 images at these longest sides")  # fmt: skip
    group.add_argument("--sent-side", type=int, default=1024, metavar="N",
                       help="of the image that is sent (default 1024)")  # fmt: skip
    group.add_argument("--max-tokens", type=int, default=700, metavar="N")
    group.add_argument("--temperature", type=float, default=0.2)
    group.add_argument(
        "--ledger", type=Path, metavar="DIR", help="shared by runs (default RUN/ledger)"
    )


def _add_pace(parser: Any) -> None:
    """How fast is asked, and how long one request is tried."""
    group = parser.add_argument_group("pace")
    group.add_argument("--at-once", type=int, default=16, metavar="N", help="requests (default 16)")
    group.add_argument("--requests-per-minute", type=float, metavar="N")
    group.add_argument("--tokens-per-minute", type=float, metavar="N")
    group.add_argument(
        "--tries", type=int, default=6, metavar="N", help="of one request (default 6)"
    )
    group.add_argument(
        "--pause",
        type=float,
        default=1.0,
        metavar="S",
        help="before the second try, doubled with each",
    )
    group.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="of one request (default 120)"
    )


def _add_batches(parser: Any) -> None:
    """Requests as files, which a provider answers later."""
    group = parser.add_argument_group("batches")
    group.add_argument(
        "--write-batches", type=Path, metavar="DIR", help="write the requests as files, ask nobody"
    )
    group.add_argument("--read-results", type=Path, nargs="+", default=[], metavar="FILE")
    group.add_argument(
        "--forget-batch", metavar="FILE", help="that was never run: its requests are free again"
    )


def add_score(parser: Any) -> None:
    """Add the options of scoring."""
    about = "; ".join(f"{name}: {text}" for name, (text, _) in SCORERS.items())
    parser.add_argument(
        "--scorers", default="learned", metavar="NAME,...", help=f"(default learned) {about}"
    )
    parser.add_argument(
        "--score-part",
        type=part_of_array,
        default=(0, 1),
        metavar="i/n",
        help="of a Slurm array, 0 to n-1",
    )
    parser.add_argument(
        "--actors",
        type=int,
        metavar="N",
        help="that score on a cluster of Ray (pip install -e .[ray])",
    )
    parser.add_argument(
        "--gpus-per-actor",
        type=float,
        default=0.0,
        metavar="G",
        help="may be less than 1 (default 0)",
    )


def add_decide(parser: Any) -> None:
    """Add the options of deciding."""
    usual, text = Settings(), TextRules()
    group = parser.add_argument_group("decision")
    group.add_argument(
        "--use", metavar="NAME,...", help="scorers that vote (default: all that scored; none: none)"
    )
    group.add_argument(
        "--lowest",
        type=float,
        default=usual.lowest,
        metavar="PERCENT",
        help=f"of the global captions, by each scorer (default {usual.lowest:g})",
    )
    group.add_argument(
        "--lowest-parts",
        type=float,
        default=usual.lowest_parts,
        metavar="PERCENT",
        help=f"of the parts (default {usual.lowest_parts:g})",
    )
    group.add_argument(
        "--votes", type=int, metavar="N", help="that decide (default 2, of one scorer 1)"
    )
    group.add_argument("--least-parts", type=int, default=usual.least_parts, metavar="N")
    for name in ("least_words", "most_words", "least_global_words", "most_part_words"):
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=getattr(text, name),
            metavar="N",
            help=f"(default {getattr(text, name)})",
        )
    group.add_argument("--most-repeated", type=float, default=text.most_repeated, metavar="SHARE")
    group.add_argument("--not-english", action="store_true", help="do not look at the language")


def add_plants(parser: Any) -> None:
    """Add the option that says how many captions get planted faults."""
    parser.add_argument(
        "--plants",
        type=int,
        default=400,
        metavar="N",
        help="captions whose copies get faults (default 400)",
    )


def _price(text: str) -> Price:
    try:
        into, out = map(float, text.split(","))
        return Price(into, out)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected dollars for a million tokens in and out, such as 0.15,0.60"
        ) from error


def _sides(text: str) -> list[int]:
    try:
        return [int(side) for side in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; expected pixels such as 512,1024") from error
