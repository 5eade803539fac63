"""An inspection as one HTML page: self-contained, all data escaped, every token coloured by what is trained on."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from PIL import Image

from pargo_ds.data.images import read_picture
from pargo_ds.data.schema import Sample
from pargo_ds.evaluation.inspection import Encoding, Inspection, ShownSample
from pargo_ds.evaluation.tables import Block, Table
from pargo_ds.evaluation.token_pieces import Piece
from pargo_ds.model.pictures import to_rgb

PAGE = Path(__file__).with_name("inspection.html.template").read_text(encoding="utf-8")
THUMBNAIL = 300
"""Longest side of a shown picture, pixels."""
MOST_PIECES = 3000
"""Of one conversation; the rest is counted."""
INVISIBLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control letters, and those that turn or hide text; shown by their number."""
MANY_PICTURES = 8
"""Of one sample; further ones are counted."""


def render_page(inspection: Inspection, encoding: Encoding | None = None) -> str:
    """The whole page. With `encoding` each picture is shown a second time, as the encoder gets it."""
    return Template(PAGE).substitute(
        path=html.escape(inspection.path),
        looked_at=f"{inspection.looked_at:,}",
        samples=f"{inspection.samples:,}",
        smells=_smells(inspection.smells),
        blocks="\n".join(f'<section class="{_shape(block)}">{_block(block)}</section>' for block in inspection.blocks),
        legend=LEGEND if encoding else "<p>Give a run file (--run RUN.yaml) to see what training makes of them.</p>",
        cards="\n".join(_card(shown, encoding) for shown in inspection.shown),
    )


LEGEND = (
    '<p class="tokens legend"><b class="y">trained on</b> <b class="n">read only</b> '
    '<b class="y s">special, trained on</b> <b class="n s">special, read only</b> <b class="p">a picture</b></p>'
    "<p>One box is one token (or the tokens of one letter); its number shows when the pointer rests on it. The model "
    "learns to say the green ones. Right is: every answer and its end of turn green, everything else grey.</p>"
)


def _smells(smells: Sequence[str]) -> str:
    if not smells:
        return '<p class="fine">Nothing smells.</p>'
    return "<ul class=smells>" + "".join(f"<li>{_visible(smell)}</li>" for smell in smells) + "</ul>"


def _shape(block: Block) -> str:
    return "wide" if isinstance(block, Table) and len(block.header) > 2 else ""


def _block(block: Block) -> str:
    title = f"<h2>{html.escape(block.title)}</h2>"
    if isinstance(block, Table):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
        rows = "".join("<tr>" + "".join(f"<td>{_visible(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
        return f"{title}<table>{f'<tr>{head}</tr>' if any(block.header) else ''}{rows}</table>"
    longest = max((share for *_, share in block.shares()), default=0) or 1
    rows = "".join(
        f"<tr><td>{_visible(label)}</td><td class=bar><i style='width:{100 * share / longest:.1f}%'></i></td>"
        f"<td>{count:,}</td><td>{share:.1%}</td></tr>"
        for label, count, share in block.shares()
    )
    return f"{title}<table class=bars>{rows}</table><p>{_visible(block.note)}</p>"


def _card(shown: ShownSample, encoding: Encoding | None) -> str:
    sample = shown.sample
    pictures = "".join(_picture(data, encoding) for data in sample.images[:MANY_PICTURES])
    if len(sample.images) > MANY_PICTURES:
        pictures += f"<p>and {len(sample.images) - MANY_PICTURES} more</p>"
    conversations = "".join(_conversation(number, found) for number, found in enumerate(shown.conversations, 1))
    facts = ", ".join(filter(None, (sample.source, sample.license)))
    return (
        f"<section class=card><h3>{_visible(sample.id)} <small>{_visible(facts)}</small></h3>"
        f"<div class=pair><div class=pictures>{pictures}</div><div class=texts>{_texts(sample)}</div></div>"
        f"{conversations}</section>"
    )


def _texts(sample: Sample) -> str:
    rows = [(f"{kind} caption", text) for kind, text in sample.captions.items()]
    rows += [(turn["role"], turn["content"]) for turn in sample.turns]
    return "<dl>" + "".join(f"<dt>{html.escape(name)}</dt><dd>{_visible(text)}</dd>" for name, text in rows) + "</dl>"


def _picture(data: bytes, encoding: Encoding | None) -> str:
    """The picture as stored and, with `encoding`, as the encoder gets it; or the reason why it cannot be shown."""
    try:
        picture = read_picture(data)
    except ValueError as error:
        return f"<p class=fault>This picture {html.escape(str(error))}</p>"
    words = f"{picture.width} x {picture.height} {picture.format}, {len(data) / 1000:,.1f} kB"
    figures = _figure(to_rgb(picture), words)
    if encoding is not None:
        pixels = encoding.processor.pixels(picture).permute(1, 2, 0).numpy()  # (height, width, 3)
        figures += _figure(Image.fromarray(pixels), f"as the encoder gets it, {pixels.shape[1]} x {pixels.shape[0]}")
    return figures


def _figure(picture: Image.Image, words: str) -> str:
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    address = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<figure><img alt="" src="{address}"><figcaption>{html.escape(words)}</figcaption></figure>'


def _conversation(number: int, found: list[Piece] | str) -> str:
    if isinstance(found, str):
        return f"<p class=fault>Cannot be trained on: {_visible(found)}</p>"
    tokens = sum(len(piece.ids) for piece in found)
    trained = sum(len(piece.ids) for piece in found if piece.trained)
    boxes = "".join(_box(piece) for piece in found[:MOST_PIECES])
    rest = sum(len(piece.ids) for piece in found[MOST_PIECES:])
    more = f" ... and {rest:,} more tokens" if rest else ""
    words = f"conversation {number}: {tokens:,} tokens, {trained:,} trained on ({trained / tokens:.1%})"
    return f"<h4>{words}</h4><div class=tokens>{boxes}{more}</div>"


def _box(piece: Piece) -> str:
    if piece.picture:
        return f'<b class="p{" y" if piece.trained else ""}">picture: {len(piece.ids):,} tokens</b>'
    kinds = ("y" if piece.trained else "n") + (" s" if piece.special else "")
    numbers = " ".join(map(str, piece.ids))
    return f'<b class="{kinds}" title="{numbers}">{_visible(piece.text).replace(chr(10), "&#8629;" + chr(10))}</b>'


def _visible(text: str) -> str:
    """Text escaped for HTML; letters that are not seen are written as their numbers."""
    return html.escape(INVISIBLE.sub(lambda found: f"[U+{ord(found.group()):04X}]", text.replace("\r\n", "\n")))
