"""The command line of the sources: one command for each, with the options that all of them
share.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from pargo_ds.data.shards.mds import COMPRESSIONS, SHARD_BYTES
from pargo_ds.data.shards.schema import CAPTION_KINDS
from pargo_ds.data.sources.arrow import table_files
from pargo_ds.data.sources.coco import Coco
from pargo_ds.data.sources.fetch import FetchLimits
from pargo_ds.data.sources.llava import Llava
from pargo_ds.data.sources.source import CHUNK_INPUTS, Source
from pargo_ds.data.sources.tables import Table
from pargo_ds.data.sources.webdataset import WebDataset, tar_files

LLAVA = """\
Entries {"id", "image", "conversations": [{"from": "human" | "gpt" | "system", "value"}, ...]} and their relatives:
OpenAI's and ms-swift's messages and images, LLaMA-Factory's images, ShareGPT's roles, MiniCPM's role and content, the
Cauldron's texts, Qwen-VL's <img>PATH</img> (docs/data.md has the table). A JSON array or one entry a line, also .gz.
<image> stays where it is; without any, one for each image goes in front of the first human turn. A leading answer
and an unanswered last question are left out and counted. Entries without an image are text only.

example:
  python tools/build_shards.py llava data/llava blip_laion_cc_sbu_558k.json --image-folder images
"""
WEBDATASET = """\
Members that share their name up to the first dot are one sample: images by extension, .txt or .caption the caption,
.json fields (caption, coarse, detailed, a conversation, id). Links, devices and paths that leave the tar are refused.
Members whose name begins with a dot are skipped. 000017.mask.png is an image only with --image-parts mask.
Each tar is built by one process; names are folders (all .tar and .tar.gz below), patterns or files.

example:
  python tools/build_shards.py webdataset data/recaptioned tars/ --caption-as detailed
"""
COCO = """\
--captions first: one sample an image with its first caption; the others are kept in meta.other_captions.
--captions all: one sample a caption (ids ID, ID-2, ...); the image is stored with each of them.
Karpathy's files (dataset_coco.json, dataset_flickr30k.json) are read too; --splits says which of their splits.

examples:
  python tools/build_shards.py coco data/coco captions_train2017.json --image-folder train2017 --captions all
  python tools/build_shards.py coco data/flickr dataset_flickr30k.json --image-folder flickr30k-images --splits train
"""
TABLE = """\
CSV, TSV (first line: names of the columns, or give --columns; .gz too), Parquet and Arrow (pip install pyarrow), and
folders that Hugging Face's save_to_disk wrote. A line of a TSV is a row, quotes are text (or --tsv-quotes).
--images-are path: below --image-folder. bytes: the file itself (in a CSV as base64; Hugging Face's {bytes, path} too).
url: downloaded with --fetch, from public addresses only, within limits; servers that forbid use for AI are heeded.

examples:
  python tools/build_shards.py table data/t t.csv --image-column file --image-folder images --caption-column caption
  python tools/build_shards.py table data/t part-*.parquet --image-column image --images-are bytes --caption-column text
  python tools/build_shards.py table data/ai2d the_cauldron/ai2d/*.parquet --image-column images --images-are bytes \\
      --conversations-column texts
"""
MIXTURE = """\
Reads InternVL's meta JSON {name: {root, annotation, repeat_time}} and LLaVA-NeXT's YAML {datasets: [{json_path,
sampling_strategy}]}. Each data set becomes a folder OUT/NAME, built as the command llava does; then the lines for
data.train of a run file are printed, with repeat from repeat_time or random:P%.

examples:
  python tools/build_shards.py mixture data/internvl meta.json
  python tools/build_shards.py mixture data/onevision si.yaml --image-folder images --validation 0.001
"""
FORM = argparse.RawDescriptionHelpFormatter


def add_sources(
    commands: Any,
    run: Callable[[argparse.Namespace], None],
    more: Callable[[Any], None] | None = None,
) -> None:
    """Add the commands llava, webdataset, coco and table to subparsers.

    Parsed options have the attributes `run` and `make`. The latter is a function from options to
    the Source; it raises ValueError for files that cannot be read. `more` adds the options for what is
    done with a source (default: those for building shards).
    """
    for add in (_add_llava, _add_webdataset, _add_coco, _add_table):
        parser = add(commands)
        parser.set_defaults(run=run)
        (more or add_building)(parser)


def _add_source(
    commands: Any, name: str, about: str, more: str, make: Callable[[Any], Source]
) -> Any:
    """Add the command of a source with the options that all sources share; return its parser."""
    parser = commands.add_parser(name, help=about, description=f"Read {about}.", epilog=more,
                                 formatter_class=FORM)  # fmt: skip
    parser.set_defaults(make=make)
    parser.add_argument("out", metavar="OUT", help="folder to make, or s3://bucket/folder")
    parser.add_argument("files", metavar="FILE", nargs="+", help="files to read, in this order")
    group = parser.add_argument_group("samples")
    group.add_argument("--source-name", default="", metavar="TEXT", help="stored with each sample")
    group.add_argument("--license", default="", metavar="TEXT", help="stored with each sample")
    group.add_argument(
        "--longest-side",
        type=int,
        metavar="N",
        help="store larger images smaller, as JPEG (default: bytes as they are)",
    )
    group = parser.add_argument_group("work")
    group.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: cores)",
    )
    group.add_argument(
        "--part",
        type=part_of_array,
        default=(0, 1),
        metavar="i/n",
        help="read part i of n, 0 to n-1; then: merge",
    )
    return parser


def add_building(parser: Any, max_rejects: float = 0.1) -> None:
    """Add the options for building shards from a source."""
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--validation", type=_share_or_number, metavar="FRACTION|N",
        help="split by image into OUT/train and OUT/validation: none is in both (a fraction stays when data is added)",
    )  # fmt: skip
    group.add_argument(
        "--same-id", choices=("number", "drop"), default="number",
        help="another sample with an id that came before: ID#2, ID#3, ... (default), or left out and counted",
    )  # fmt: skip
    group.add_argument(
        "--max-rejects",
        type=fraction,
        default=max_rejects,
        metavar="FRACTION",
        help=f"more rejects among the inputs are an error (default {max_rejects:g}), the work is kept",
    )
    group.add_argument(
        "--work",
        metavar="DIR",
        help="where the shards for an object store are built (default ./FOLDER)",
    )
    group.add_argument(
        "--run", dest="run_file", metavar="RUN.yaml", help="write the lengths for this run, too"
    )
    group.add_argument(
        "--compression", choices=COMPRESSIONS, default="none", help="of the shards (default none)"
    )
    group.add_argument(
        "--shard-bytes",
        type=int,
        default=SHARD_BYTES,
        metavar="N",
        help="of a shard (default 16 MiB)",
    )


def _add_images(parser: Any, required: bool) -> Any:
    """Add the options of the sources that are not tars."""
    parser.add_argument(
        "--chunk-inputs",
        type=int,
        default=CHUNK_INPUTS,
        metavar="N",
        help="inputs built together (default 2000)",
    )
    parser.add_argument(
        "--image-folder",
        metavar="FOLDER",
        required=required,
        help="folder that image paths begin in",
    )
    parser.add_argument(
        "--follow-links", action="store_true", help="read images through links out of that folder"
    )
    return parser


def _add_caption_as(parser: Any) -> Any:
    parser.add_argument(
        "--caption-as",
        choices=CAPTION_KINDS,
        default="coarse",
        help="kind of the captions (default coarse)",
    )
    return parser


def _add_captions(parser: Any) -> None:
    parser.add_argument(
        "--captions", choices=("first", "all"), default="first", help="of an image with several"
    )


def _llava(options: Any) -> Source:
    return Llava(files=tuple(options.files), chunk_inputs=options.chunk_inputs, image_folder=options.image_folder,
                 follow_links=options.follow_links)  # fmt: skip


def _add_llava(commands: Any) -> Any:
    return _add_images(
        _add_source(commands, "llava", "conversation files in JSON", LLAVA, _llava), required=False
    )


def add_mixture(commands: Any, run: Callable[[argparse.Namespace], None]) -> None:
    """Add the command mixture. Its options are those of llava; its files are recipes."""
    parser = _add_source(
        commands, "mixture", "lists of data sets (InternVL's and LLaVA-NeXT's)", MIXTURE, _llava
    )
    _add_images(parser, required=False).set_defaults(run=run)
    add_building(parser)


def _add_webdataset(commands: Any) -> Any:
    def make(options: Any) -> Source:
        return WebDataset(
            files=tar_files(options.files),
            caption_as=options.caption_as,
            image_parts=_names(options.image_parts),
        )

    parser = _add_source(commands, "webdataset", "WebDataset tars", WEBDATASET, make)
    parser.add_argument(
        "--image-parts",
        default="",
        metavar="A,B,...",
        help="also images whose name has such a part: KEY.A.png",
    )
    return _add_caption_as(parser)


def _add_coco(commands: Any) -> Any:
    def make(options: Any) -> Source:
        return Coco(files=tuple(options.files), chunk_inputs=options.chunk_inputs, image_folder=options.image_folder,
                    follow_links=options.follow_links, captions=options.captions,
                    splits=_names(options.splits), caption_as=options.caption_as)  # fmt: skip

    parser = _add_images(
        _add_source(commands, "coco", "COCO's caption files", COCO, make), required=True
    )
    parser.add_argument(
        "--splits", default="", metavar="A,B,...", help="of Karpathy's files, such as train,restval"
    )
    _add_captions(parser)
    return _add_caption_as(parser)


def _add_table(commands: Any) -> Any:
    parser = _add_images(
        _add_source(commands, "table", "CSV, TSV, Parquet and Arrow tables", TABLE, _table),
        required=False,
    )
    columns = parser.add_argument_group("columns")
    for name in ("image", "caption", "detailed", "conversations", "id"):
        columns.add_argument(f"--{name}-column", metavar="NAME")
    columns.add_argument(
        "--images-are", choices=("path", "bytes", "url"), default="path", help="(default path)"
    )
    columns.add_argument(
        "--columns",
        default="",
        metavar="A,B,...",
        help="names, for CSV and TSV without a header line",
    )
    columns.add_argument(
        "--tsv-quotes", action="store_true", help="cells of a TSV may stand in quotes, as in a CSV"
    )
    _add_captions(columns)
    limits = parser.add_argument_group("downloads")
    usual = FetchLimits()
    limits.add_argument("--fetch", action="store_true", help="download images by URL")
    limits.add_argument(
        "--fetch-bytes",
        type=int,
        default=usual.max_bytes,
        metavar="N",
        help="most bytes of one image",
    )
    limits.add_argument(
        "--fetch-seconds",
        type=float,
        default=usual.seconds,
        metavar="S",
        help="longest time for one",
    )
    limits.add_argument(
        "--fetch-redirects",
        type=int,
        default=usual.redirects,
        metavar="N",
        help="most redirects of one",
    )
    limits.add_argument(
        "--fetch-threads",
        type=int,
        default=usual.threads,
        metavar="N",
        help="at a time, in each worker",
    )
    limits.add_argument(
        "--allow-private", action="store_true", help="also from private and loopback addresses"
    )
    return parser


def _table(options: Any) -> Source:
    limits = FetchLimits(max_bytes=options.fetch_bytes, seconds=options.fetch_seconds, threads=options.fetch_threads,
                         redirects=options.fetch_redirects, allow_private=options.allow_private)  # fmt: skip
    names = ("image_column", "caption_column", "detailed_column", "conversations_column", "id_column", "images_are",
             "image_folder", "follow_links", "chunk_inputs", "captions", "tsv_quotes")  # fmt: skip
    return Table(
        files=table_files(options.files),
        columns=_names(options.columns),
        download=limits if options.fetch else None,
        **{name: getattr(options, name) for name in names},
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def part_of_array(text: str) -> tuple[int, int]:
    """Convert "3/16" to (3, 16); a type for argparse."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected i/n with i from 0 to n-1, such as 0/16"
        )
    return int(number), int(parts)


def _share_or_number(text: str) -> float | int:
    if text.isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected a share such as 0.01 or a number such as 2000"
        ) from error


def fraction(text: str) -> float:
    """Convert the text of a number from 0 to 1; a type for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected 0 to 1")
    return value
