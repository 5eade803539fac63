"""The command line of a data set of composed scenes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pargo_ds.data.shards.mds import COMPRESSIONS
from pargo_ds.scenes.glyphs import STYLES, default_cache
from pargo_ds.scenes.questions import ASKING
from pargo_ds.scenes.splits import ScenesPlan

EXAMPLES = """\
examples:
  1,200 + 200 scenes of OpenMoji, from pip packages only, in about 20 seconds (`make demo` takes --concepts 24):
    python tools/build_shards.py scenes data/scenes

  A tiny set to look at:
    python tools/build_shards.py scenes /tmp/few --train 8 --validation 4 --workers 1

  Learn from two artists, be tested on a third (fetches one Debian and one npm package, 26 MB):
    python tools/build_shards.py scenes data/three_styles --styles openmoji,noto,fluent --hold-out-style noto

what comes out:
  OUT/train, OUT/validation   folders of shards with an index.json each; give one of them to readers
  OUT/split.json            seed, counts, styles and concepts of each split, sources and licences

The same arguments give the same bytes, whatever the number of workers. OUT is whole or absent: it is written under a
temporary name and renamed at the end.
"""


def add_scenes(commands: Any, run: Callable[[argparse.Namespace], None]) -> None:
    """Add the command `scenes`, which calls `run`."""
    scenes = commands.add_parser(
        "scenes",
        help="composed scenes of emoji images, with captions and questions whose truth is known",
        description="Compose scenes: one large object and two to four small ones at named places.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scenes.set_defaults(run=run)
    scenes.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    scenes.add_argument(
        "--seed", type=int, default=0, help="everything follows from it (default 0)"
    )
    scenes.add_argument(
        "--train", type=int, default=1200, metavar="N", help="scenes to train on (default 1200)"
    )
    scenes.add_argument(
        "--validation", type=int, default=200, metavar="N", help="scenes to test on (default 200)"
    )
    scenes.add_argument(
        "--size", type=int, default=256, help="width and height in pixels (default 256)"
    )
    scenes.add_argument(
        "--styles",
        default="openmoji",
        help=f"comma-separated, of {', '.join(STYLES)} (default openmoji)",
    )
    scenes.add_argument(
        "--hold-out-style",
        choices=sorted(STYLES),
        help="draw this style in validation only, and nothing else there",
    )
    scenes.add_argument(
        "--concepts",
        type=int,
        metavar="N",
        help="approximate number of different things, from all groups (default: all)",
    )
    scenes.add_argument(
        "--questions",
        choices=sorted(ASKING),
        default="mixed",
        help="mixed: names, colours, places, counts, yes and no; names: of every thing, the small "
        "ones too (default mixed)",
    )
    scenes.add_argument(
        "--compression", choices=COMPRESSIONS, default="none", help="of the shards (default none)"
    )
    scenes.add_argument(
        "--cache", type=Path, help=f"folder for fetched styles (default {default_cache()})"
    )
    scenes.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that draw (default: all cores)",
    )
    scenes.add_argument("--force", action="store_true", help="replace OUT if it exists")


def plan_of(options: argparse.Namespace) -> ScenesPlan:
    """Return the plan that a command line asks for. Raises ValueError for what cannot be."""
    styles = [style.strip() for style in options.styles.split(",")]
    return ScenesPlan(
        seed=options.seed,
        train=options.train,
        validation=options.validation,
        size=options.size,
        styles=tuple(style for style in styles if style),
        hold_out_style=options.hold_out_style,
        concepts=options.concepts,
        questions=options.questions,
        cache=options.cache,
    )
