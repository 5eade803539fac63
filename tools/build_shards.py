"""Build MDS shards, the format that training reads (pargo_ds/data/shards/schema.py describes a
sample).
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from pargo_ds.config import DataSection, RunConfig, load_config
from pargo_ds.data.building.delivery import Destination, build, upload
from pargo_ds.data.building.merge import REJECTS, Merged, merge
from pargo_ds.data.building.plan import Plan
from pargo_ds.data.sources import SampleTransform, Source
from pargo_ds.data.sources.options import (
    add_building,
    add_mixture,
    add_sources,
    fraction,
    part_of_array,
)
from pargo_ds.data.sources.recipes import read_recipe
from pargo_ds.scenes.build import build_scenes
from pargo_ds.scenes.options import add_scenes, plan_of
from pargo_ds.settings_file import format_yaml

EXAMPLES = """\
examples (each source explains itself: build_shards.py llava --help):
  LLaVA's conversations, 1 % held out:
    python tools/build_shards.py llava data/llava llava_v1_5_mix665k.json \\
        --image-folder playground/data --validation 0.01
  WebDataset tars, images made smaller, straight to an object store:
    python tools/build_shards.py webdataset s3://bucket/laion 'tars/*.tar' --longest-side 1024
  COCO captions:
    python tools/build_shards.py coco data/coco captions_train2017.json --image-folder train2017
  a table of URLs:
    python tools/build_shards.py table data/cc3m cc3m.tsv --columns caption,url --image-column url --images-are url \\
        --caption-column caption --fetch
  the composed scenes of `make demo`:
    python tools/build_shards.py scenes runs/demo/shards --concepts 24
  all data sets of InternVL's meta JSON or LLaVA-NeXT's YAML:
    python tools/build_shards.py mixture data/internvl meta.json
  what tools/caption.py kept (docs/captioning.md):
    python tools/build_shards.py captions data/captions runs/captions --validation 0.01
  on 16 machines (slurm/shards.sh does it), then once:
    python tools/build_shards.py llava OUT FILE ... --part 3/16
    python tools/build_shards.py merge OUT
  how long every sample is, measured once and kept with the shards:
    python tools/build_shards.py lengths ds_configs/pretrain.yaml

A build that was killed goes on when the same command is given again. The index appears when all shards are there.
Nothing is left out silently: OUT/rejects.jsonl names each input that gave no sample, with the reason.
"""
FORM = argparse.RawDescriptionHelpFormatter


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; `options.run` is the function that does the work."""
    parser = argparse.ArgumentParser(
        "build_shards.py", description=__doc__, epilog=EXAMPLES, formatter_class=FORM
    )
    commands = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    add_sources(commands, run_source)
    add_mixture(commands, run_mixture)
    _add_captions(commands)
    add_scenes(commands, run_scenes)
    _add_merge(commands)
    _add_lengths(commands)
    return parser.parse_args(arguments)


def _add_captions(commands: Any) -> None:
    parser = commands.add_parser(
        "captions",
        help="what a run of tools/caption.py kept",
        description="Build shards of the captions that a run has decided to keep, with their provenance.",
        epilog="example:\n  python tools/build_shards.py captions data/captions runs/captions --validation 0.01",
        formatter_class=FORM,
    )
    parser.add_argument("out", metavar="OUT", help="folder to make, or s3://bucket/folder")
    parser.add_argument("captions_run", metavar="RUN", help="folder of tools/caption.py")
    parser.add_argument(
        "--dropped",
        action="store_true",
        help="what the run dropped instead: training on both tells what the filter is worth",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="(default: cores)"
    )
    parser.add_argument(
        "--part",
        type=part_of_array,
        default=(0, 1),
        metavar="i/n",
        help="build part i of n; then: merge",
    )
    add_building(parser, max_rejects=1.0)  # what was dropped is a reject
    parser.set_defaults(
        run=run_source,
        make=_captions,
        source_name="",
        license="",
        longest_side=None,
    )


def _captions(options: argparse.Namespace) -> Source:
    # Imported here, because it takes seconds and --help should not.
    from pargo_ds.captioning.source import Captions

    return Captions.of(options.captions_run, options.dropped)


def _add_merge(commands: Any) -> None:
    parser = commands.add_parser(
        "merge", help="make one data set of the parts that --part built",
        description="Leave out duplicates, number the shards, write the index; upload to an object store.",
        epilog="example:\n  python tools/build_shards.py merge data/llava", formatter_class=FORM,
    )  # fmt: skip
    parser.set_defaults(run=run_merge)
    parser.add_argument("out", metavar="OUT", help="as it was given to the parts")
    parser.add_argument("--work", metavar="DIR", help="as it was given to the parts")
    parser.add_argument(
        "--max-rejects", type=fraction, metavar="FRACTION", help="(default: as given to the parts)"
    )
    parser.add_argument(
        "--run", dest="run_file", metavar="RUN.yaml", help="write the lengths for this run, too"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="that measure lengths (default: cores)",
    )


def _add_lengths(commands: Any) -> None:
    parser = commands.add_parser(
        "lengths", help="measure the samples of a run's data, once, and keep the lengths with the shards",
        description="For each stream and the held-out data of a run file: tokens and image sizes of every sample, "
        "with the run's tokenizer and template, into FOLDER/lengths. Training then starts without measuring.",
        epilog="example:\n  python tools/build_shards.py lengths ds_configs/pretrain.yaml", formatter_class=FORM,
    )  # fmt: skip
    parser.set_defaults(run=run_lengths)
    parser.add_argument("run_file", metavar="RUN.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="as in training",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="(default: cores)"
    )


def run_source(options: argparse.Namespace) -> None:
    """Build the shards of one source, or one part of the shards."""
    transform = SampleTransform(
        source=options.source_name, license=options.license, longest_side=options.longest_side
    )
    plan = Plan(
        source=options.make(options),
        transform=transform,
        validation=options.validation,
        same_id=options.same_id,
        compression=options.compression,
        shard_bytes=options.shard_bytes,
    )
    destination = Destination.of(options.out, options.work)
    if options.run_file and options.part[1] > 1:
        raise ValueError(
            "--run: lengths are measured when all parts are there; give it to build_shards.py merge"
        )
    run = load_config(options.run_file) if options.run_file else None  # its faults before the work
    merged = build(
        plan,
        destination,
        workers=options.workers,
        part=options.part,
        max_rejects=options.max_rejects,
    )
    if merged is None:
        print(
            f"part {options.part[0]} of {options.part[1]} is built; when all are: build_shards.py merge {options.out}"
        )
        return
    _deliver(options, destination, merged, run)


def run_scenes(options: argparse.Namespace) -> None:
    """Compose the scenes of both splits. Raises as `build_scenes`."""
    plan = plan_of(options)
    description = build_scenes(
        plan,
        options.out,
        compression=options.compression,
        workers=options.workers,
        force=options.force,
    )
    styles, concepts = description["styles"], description["concepts"]
    print(
        f"{options.out}: {plan.train} scenes to train on ({', '.join(styles['train'])}), "
        f"{plan.validation} held out ({', '.join(styles['validation'])}); "
        f"{len(description['held_out_concepts'])} of {len(concepts['validation'])} concepts held out"
    )


def run_mixture(options: argparse.Namespace) -> None:
    """Build each data set of the recipes into its own folder, and print the streams for a run
    file.
    """
    parts = []
    for path in options.files:
        parts += read_recipe(path, options.image_folder)
    destination = Destination.of(options.out, options.work)
    builds = []
    for part in parts:
        own = {
            "out": f"{options.out.rstrip('/')}/{part.name}",
            "files": [part.file],
            "image_folder": part.image_folder,
        }
        if destination.remote is not None:
            own["work"] = str(destination.local / part.name)
        build_options = argparse.Namespace(**{**vars(options), **own})
        build_options.make(build_options)  # its faults, before the first data set is built
        builds.append(build_options)
    names = [build_options.out for build_options in builds]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two recipes name the same data set: {', '.join(sorted(names))}; build them into two folders"
        )
    for build_options in builds:
        print(f"{build_options.out}:")
        run_source(build_options)
    streams = []
    for build_options, part in zip(builds, parts, strict=True):
        stream = {"path": build_options.out, "text": "turns"}
        if options.validation is not None:
            stream["path"] += "/train"
        if part.repeat != 1:
            stream["repeat"] = part.repeat
        streams.append(stream)
    print(format_yaml({"data": {"train": streams}}), end="")


def run_merge(options: argparse.Namespace) -> None:
    """Merge the parts of a build."""
    destination = Destination.of(options.out, options.work)
    run = load_config(options.run_file) if options.run_file else None  # its faults before the work
    _deliver(options, destination, merge(destination.local, options.max_rejects), run)


def _deliver(
    options: argparse.Namespace, destination: Destination, merged: Merged, run: RunConfig | None
) -> None:
    """Measure lengths for a run, upload, and print the account."""
    if run is not None:
        from pargo_ds.assembly.processor import build_processor

        processor = build_processor(run)
        for name in merged.splits:
            address = f"{options.out}/{name}".rstrip("/")
            streams = [one for one in run.data.train if one.path.rstrip("/") == address]
            own = [run.data.of_stream(stream) for stream in streams]
            folders = [(str(destination.local / name), data) for data in own or [run.data]]
            _write_lengths(folders, processor, options.workers)
    if destination.remote is not None:
        upload(destination, merged)
    print(merged.table())
    folder, splits = destination.remote or destination.local, sorted(merged.splits.items())
    where = ", ".join(f"{folder}/{name}: {number:,}" for name, number in splits)
    left_out = ""
    if merged.left_out:
        left_out = f"; inputs left out: {destination.local / REJECTS}"
    print(f"{where.replace('/:', ':')} samples{left_out}")
    if destination.remote is not None:
        print(f"{destination.local} holds the same; delete it when you need it no more")


def run_lengths(options: argparse.Namespace) -> None:
    """Write the side-cars of all data of a run file."""
    from pargo_ds.assembly.processor import build_processor

    run = load_config(options.run_file, options.overrides)
    folders = [(stream.path, run.data.of_stream(stream)) for stream in run.data.train]
    if run.data.validation:
        folders.append((run.data.validation, run.data))
    _write_lengths(folders, build_processor(run), options.workers)


def _write_lengths(folders: list[tuple[str, DataSection]], processor: Any, workers: int) -> None:
    from pargo_ds.data.packing.lengths import write_side_car
    from pargo_ds.data.shards.folder import open_folder

    for path, data in folders:
        side_car = write_side_car(
            open_folder(path, data.cache, "lengths"), data, processor, workers
        )
        print(f"{path}: lengths in {side_car}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    try:
        options.run(options)
    except (ValueError, ModuleNotFoundError, OSError) as error:
        print(f"build_shards.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "build_shards.py: stopped; what is finished is kept, the same command goes on",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
