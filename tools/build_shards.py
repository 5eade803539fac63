"""Build MDS shards, the format that training reads (see pargo_ds/data/schema.py for what a sample holds)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from pargo_ds.data.glyphs import STYLES, default_cache, prepare_style
from pargo_ds.data.scene_splits import SPLITS, ScenesPlan, scene_samples
from pargo_ds.data.schema import Sample
from pargo_ds.data.shards import COMPRESSIONS, whole_folder, write_shards

EXAMPLES = """\
examples:
  The data of `make demo` (1,200 + 200 scenes, OpenMoji only, pip packages only, about 20 seconds):
    python tools/build_shards.py scenes runs/demo/data

  A tiny set to look at:
    python tools/build_shards.py scenes /tmp/few --train 8 --held-out 4 --workers 1

  Learn from two artists, be tested on a third (fetches one Debian and one npm package, 26 MB):
    python tools/build_shards.py scenes data/scenes --styles openmoji,noto,fluent --hold-out-style noto

what comes out:
  OUT/train, OUT/held_out   folders of shards with an index.json each; give one of them to readers
  OUT/split.json            seed, counts, styles and concepts of each split, sources and licences

The same arguments give the same bytes, whatever the number of workers. OUT is whole or absent: it is written under a
temporary name and renamed at the end.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=form)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    scenes = sources.add_parser(
        "scenes",
        help="composed scenes of emoji pictures, with captions and questions whose truth is known",
        description="Compose scenes: one large object and two to four small ones at named places.",
        epilog=EXAMPLES,
        formatter_class=form,
    )
    scenes.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    scenes.add_argument("--seed", type=int, default=0, help="everything follows from it (default 0)")
    scenes.add_argument("--train", type=int, default=1200, metavar="N", help="scenes to train on (default 1200)")
    scenes.add_argument("--held-out", type=int, default=200, metavar="N", help="scenes to test on (default 200)")
    scenes.add_argument("--size", type=int, default=256, help="width and height in pixels (default 256)")
    scenes.add_argument(
        "--styles", default="openmoji", help=f"comma-separated, of {', '.join(STYLES)} (default openmoji)"
    )
    scenes.add_argument(
        "--hold-out-style", choices=sorted(STYLES), help="draw this style in held_out only, and nothing else there"
    )
    scenes.add_argument(
        "--concepts", type=int, metavar="N", help="things that occur, about so many of all groups (default: all)"
    )
    scenes.add_argument("--compression", choices=COMPRESSIONS, default="none", help="of the shards (default none)")
    scenes.add_argument("--cache", type=Path, help=f"folder for fetched styles (default {default_cache()})")
    scenes.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that draw (default: all cores)"
    )
    scenes.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser.parse_args(arguments)


def build_scenes(options: argparse.Namespace) -> None:
    """Write both splits and split.json into `options.out`; raises ValueError for anything the user can put right."""
    plan = ScenesPlan(
        seed=options.seed,
        train=options.train,
        held_out=options.held_out,
        size=options.size,
        styles=tuple(style.strip() for style in options.styles.split(",") if style.strip()),
        hold_out_style=options.hold_out_style,
        concepts=options.concepts,
        cache=options.cache,
    )
    for style in plan.styles:
        prepare_style(style, plan.cache)  # fail for want of pictures now, not after the first split
    with whole_folder(options.out, force=options.force) as unfinished:
        for split in SPLITS:
            samples = scene_samples(plan, split, workers=options.workers)
            shown = _with_progress(samples, getattr(plan, split), split)
            write_shards(shown, unfinished / split, compression=options.compression)
        description = plan.description()
        (unfinished / "split.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    print(
        f"{options.out}: {plan.train} scenes to train on ({', '.join(description['styles']['train'])}), "
        f"{plan.held_out} held out ({', '.join(description['styles']['held_out'])}); "
        f"{len(description['held_out_concepts'])} of {len(description['concepts']['held_out'])} concepts held out"
    )


def _with_progress(samples: Iterable[Sample], total: int, split: str) -> Iterable[Sample]:
    return tqdm(samples, total=total, desc=f"{split:>8}", unit="scene", disable=None)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    try:
        {"scenes": build_scenes}[options.source](options)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"build_shards.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
