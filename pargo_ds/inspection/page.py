"""Show an inspection as one self-contained HTML page. All data are escaped, and colours show which
tokens are trained.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from PIL import Image

from pargo_ds.data.images import read_image
from pargo_ds.data.shards.schema import Sample
from pargo_ds.inspection.tables import Block, Table

if TYPE_CHECKING:  # they bring torch, and other pages take only figures and tables from here
    from pargo_ds.inspection.inspect import Encoding, Inspection, ShownSample
    from pargo_ds.inspection.token_pieces import Piece

PAGE = Path(__file__).with_name("inspection.html.template").read_text(encoding="utf-8")
NO_LEGEND = "<p>Give a run file (--run RUN.yaml) to see what training makes of them.</p>"
THUMBNAIL = 300
"""Longest side of a shown image in pixels."""
MOST_PIECES = 3000
"""Upper bound of the shown pieces of one conversation; the others are counted."""
INVISIBLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
"""Control characters, and characters that turn or hide text; the page shows their numbers."""
MANY_IMAGES = 8
"""Upper bound of the shown images of one sample; the others are counted."""


def render_page(inspection: Inspection, encoding: Encoding | None = None) -> str:
    """Return the whole page. With `encoding` each image is also shown as the encoder gets it."""
    return Template(PAGE).substitute(
        path=html.escape(inspection.path),
        looked_at=f"{inspection.looked_at:,}",
        samples=f"{inspection.samples:,}",
        warnings=_warnings(inspection.warnings),
        blocks=blocks_html(inspection.blocks),
        legend=LEGEND if encoding else NO_LEGEND,
        cards="\n".join(_card(shown, encoding) for shown in inspection.shown),
    )


LEGEND = (
    '<p class="tokens legend"><b class="y">trained on</b> <b class="n">read only</b> '
    '<b class="y s">special, trained on</b> <b class="n s">special, read only</b> <b class="p">an image</b></p>'
    "<p>One box is one token (or the tokens of one letter); its number shows when the pointer rests on it. The model "
    "learns to say the green ones. Right is: every answer and its end of turn green, everything else grey.</p>"
)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<p class="fine">There are no warnings.</p>'
    return (
        "<ul class=warnings>"
        + "".join(f"<li>{visible(warning)}</li>" for warning in warnings)
        + "</ul>"
    )


def blocks_html(blocks: Sequence[Block]) -> str:
    """Return a section for each table and each bar chart."""
    sections = []
    for block in blocks:
        shape = ""
        if isinstance(block, Table) and len(block.header) > 2:
            shape = "wide"
        sections.append(f'<section class="{shape}">{_block(block)}</section>')
    return "\n".join(sections)


def _block(block: Block) -> str:
    title = f"<h2>{html.escape(block.title)}</h2>"
    if isinstance(block, Table):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
        lines = []
        if any(block.header):
            lines.append(f"<tr>{head}</tr>")
        for row in block.rows:
            cells = "".join(f"<td>{visible(cell)}</td>" for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        return f"{title}<table>{''.join(lines)}</table>"
    longest = max((share for *_, share in block.shares()), default=0) or 1
    rows = ""
    for label, count, share in block.shares():
        bar = f"<i style='width:{100 * share / longest:.1f}%'></i>"
        rows += f"<tr><td>{visible(label)}</td><td class=bar>{bar}</td>"
        rows += f"<td>{count:,}</td><td>{share:.1%}</td></tr>"
    return f"{title}<table class=bars>{rows}</table><p>{visible(block.note)}</p>"


def _card(shown: ShownSample, encoding: Encoding | None) -> str:
    sample = shown.sample
    images = "".join(_image(data, encoding) for data in sample.images[:MANY_IMAGES])
    if len(sample.images) > MANY_IMAGES:
        images += f"<p>and {len(sample.images) - MANY_IMAGES} more</p>"
    conversations = ""
    for number, found in enumerate(shown.conversations, 1):
        conversations += _conversation(number, found)
    facts = ", ".join(filter(None, (sample.source, sample.license)))
    return (
        f"<section class=card><h3>{visible(sample.id)} <small>{visible(facts)}</small></h3>"
        f"<div class=pair><div class=images>{images}</div><div class=texts>{_texts(sample)}</div></div>"
        f"{conversations}</section>"
    )


def _texts(sample: Sample) -> str:
    rows = [(f"{kind} caption", text) for kind, text in sample.captions.items()]
    rows += [(turn["role"], turn["content"]) for turn in sample.turns]
    return (
        "<dl>"
        + "".join(f"<dt>{html.escape(name)}</dt><dd>{visible(text)}</dd>" for name, text in rows)
        + "</dl>"
    )


def _image(data: bytes, encoding: Encoding | None) -> str:
    """Return the image as it is stored and, with `encoding`, as the encoder gets it; or the reason
    why it cannot be shown.
    """
    from pargo_ds.model.images import to_rgb  # brings torch, too

    try:
        image = read_image(data)
    except ValueError as error:
        return f"<p class=fault>This image {html.escape(str(error))}</p>"
    words = f"{image.width} x {image.height} {image.format}, {len(data) / 1000:,.1f} kB"
    figures = figure(to_rgb(image), words)
    if encoding is not None:
        pixels = encoding.processor.pixels(image).permute(1, 2, 0).numpy()  # (height, width, 3)
        figures += figure(
            Image.fromarray(pixels),
            f"as the encoder gets it, {pixels.shape[1]} x {pixels.shape[0]}",
        )
    return figures


def figure(image: Image.Image, words: str) -> str:
    """Return an image with words below it. The image itself is made smaller."""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    address = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<figure><img alt="" src="{address}"><figcaption>{html.escape(words)}</figcaption></figure>'


def _conversation(number: int, found: list[Piece] | str) -> str:
    if isinstance(found, str):
        return f"<p class=fault>Cannot be trained on: {visible(found)}</p>"
    tokens = sum(len(piece.ids) for piece in found)
    trained = sum(len(piece.ids) for piece in found if piece.trained)
    boxes = "".join(_box(piece) for piece in found[:MOST_PIECES])
    rest = sum(len(piece.ids) for piece in found[MOST_PIECES:])
    more = ""
    if rest:
        more = f" ... and {rest:,} more tokens"
    words = (
        f"conversation {number}: {tokens:,} tokens, {trained:,} trained on ({trained / tokens:.1%})"
    )
    return f"<h4>{words}</h4><div class=tokens>{boxes}{more}</div>"


def _box(piece: Piece) -> str:
    if piece.image:
        kinds = "p y" if piece.trained else "p"
        return f'<b class="{kinds}">image: {len(piece.ids):,} tokens</b>'
    kinds = "y" if piece.trained else "n"
    if piece.special:
        kinds += " s"
    numbers = " ".join(map(str, piece.ids))
    return f'<b class="{kinds}" title="{numbers}">{visible(piece.text).replace(chr(10), "&#8629;" + chr(10))}</b>'


def visible(text: str) -> str:
    """Escape a text for HTML. Invisible characters are replaced by their numbers."""
    return html.escape(
        INVISIBLE.sub(lambda found: f"[U+{ord(found.group()):04X}]", text.replace("\r\n", "\n"))
    )
