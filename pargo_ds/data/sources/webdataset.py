"""WebDataset tars: members with the same key make one sample. Tars are read as streams and never
unpacked to the disk.
"""

from __future__ import annotations

import bz2
import dataclasses
import glob
import gzip
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.sources.conversations import Dialogue, dialogue_of
from pargo_ds.data.sources.images import ENDINGS, check_count, check_size
from pargo_ds.data.sources.json_files import check_each_once, parsed
from pargo_ds.data.sources.keys import CONVERSATION_KEYS, filled
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.data.sources.source import Chunk, InputLocation, Source, text_id
from pargo_ds.errors import SourceError

KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"""Splits the name of a member into key and extension, at the first dot of the file name."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
"""How the names of tars end that are looked for in a folder."""
TEXTS = ("txt", "caption")
HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
MAX_HEADER = 1 << 20
"""HEADERS are types of members that hold long names and extended headers; tarfile reads them into
memory. MAX_HEADER is the upper bound of their bytes.
"""
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, ValueError, OSError)
PACKED: tuple[tuple[bytes, Callable[[str, str], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
)
"""The first bytes of packed tars, and the function that unpacks them. These functions read all
parts of a file (pigz, bgzip and cat write several) and compare checksums; the streams of tarfile
stop after the first part and compare nothing.
"""


class NoEndMark(tarfile.ReadError):
    """The file ends where the next header should begin."""


class TarEntry(tarfile.TarInfo):
    """A header of a tar that raises an error when it is broken; tarfile would silently end
    there.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> TarEntry:
        """Parse a header as tarfile does, but raise ReadError for a broken one. EOFHeaderError
        marks the end of the tar.
        """
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed has not listed it
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]  # nor this one
            raise NoEndMark("it has no end mark; it may have been cut") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"broken header ({error})") from error
        if entry.type in HEADERS and entry.size > MAX_HEADER:
            raise tarfile.ReadError(f"header of type {entry.type!r} with {entry.size:,} bytes")
        return entry


def tar_files(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tars that folders, glob patterns and file names stand for; the tars of a folder or
    pattern are sorted by name.

    Raises SourceError when one of the names stands for no tar.
    """
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            paths = map(str, Path(name).rglob("*"))
            own = sorted(path for path in paths if path.endswith(TARS))
        elif os.path.isfile(name):
            own = [name]
        else:
            own = sorted(glob.glob(name))
        if not own:
            raise SourceError(
                f"{name} is no tar, no folder with .tar or .tar.gz files, and matches none as a pattern"
            )
        found += own
    return tuple(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDataset(Source):
    """Samples of images (found by their extension, in the order of the tar), a caption (.txt or
    .caption) and fields (.json).

    A .json member may have the fields caption, coarse, detailed, id and a conversation; a .txt
    member takes precedence over its caption. An image whose name has a further part
    (000017.mask.png) is read if `image_parts` names that part. Members that are not read are
    counted, but a text that is not read makes its sample a reject. Each tar is one chunk.
    """

    caption_as: Literal["coarse", "detailed"] = "coarse"
    image_parts: tuple[str, ...] = ()

    def chunks(self) -> Generator[Chunk, None, None]:
        """Make each tar one chunk, because a tar is read as a stream."""
        for path in self.files:
            yield Chunk(path, os.path.getsize(path))

    def entries(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        """Yield the groups of a tar, each as (key, {extension: bytes}), and a Reject for each
        member or group that cannot be used.

        A damaged tar gives all groups before the damage, and then one Reject for the rest.
        """
        group = _Group("", "")
        last = "its start"
        try:
            with (
                _unpacked(payload) as file,
                tarfile.open(fileobj=file, mode="r|", tarinfo=TarEntry) as tar,
            ):
                for member in tar:
                    # Without this, tarfile would keep a million members of a tar in memory.
                    tar.members = []  # type: ignore[attr-defined]  # typeshed has not listed it
                    last = shortened(member.name)
                    if member.isdir():
                        continue
                    if PurePosixPath(member.name).name.startswith("."):
                        continue  # .DS_Store and the ._ files of macOS are no data
                    where = {"file": payload, "member": shortened(member.name, 1000)}
                    fault = _member_fault(member)
                    if fault is not None:
                        yield where, fault
                        continue
                    key, extension = _cut(member.name)
                    if key != group.key:
                        yield from group.entries(payload)
                        group = _Group(key, where["member"])
                    content = tar.extractfile(member) or io.BytesIO()
                    group.add(extension, content.read(), member)
                yield from group.entries(payload)
                group = _Group("", "")
                _check_end(tar)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a fault of the disk
            if isinstance(error, NoEndMark):
                yield from group.entries(payload)
            elif group.key:
                place = {"file": payload, "member": group.first}
                yield (
                    place,
                    Reject(
                        "tar damaged", f"the tar is damaged within or after {shortened(group.key)}"
                    ),
                )
            reason = f"the rest of the tar after {last} is lost: {shortened(str(error))}"
            yield {"file": payload, "member": last}, Reject("tar damaged", reason)

    def identify(self, where: InputLocation, entry: Any) -> str:
        """Return the id in the group's JSON, or else the key. Raises Reject."""
        key, members = entry
        return text_id(_fields(members).get("id"), key)

    def sample(self, entry: Any, sample_id: str) -> Sample:
        """Read the images, the captions and the conversation of a group. Raises Reject."""
        key, members = entry
        fields = _fields(members)
        images = [data for extension, data in members.items() if self._is_read(extension)]
        check_count(len(images))
        captions = _captions(key, members, fields, self.caption_as)
        dialogue = Dialogue([], images)
        if filled(fields, CONVERSATION_KEYS):
            dialogue = dialogue_of(fields, images)
        if not images and not dialogue.turns:
            raise _without_image(key, members)
        others = [name for name in members if name not in ("json", *TEXTS)]
        changed = list(dialogue.changed)
        for name in sorted(others):
            if not self._is_read(name):
                changed.append(f"members not read: .{shortened(name, 40)}")
        meta = {}
        if changed:
            meta["changed"] = changed
        return Sample(
            id=sample_id, images=images, turns=dialogue.turns, captions=captions, meta=meta
        )

    def _is_read(self, extension: str) -> bool:
        part, _, _ = extension.rpartition(".")
        return _is_image(extension) and (not part or part in self.image_parts)


class _Group:
    """The members with one key, in the order of the tar."""

    def __init__(self, key: str, first: str) -> None:
        self.key = key
        self.first = first
        self.members: dict[str, bytes] = {}
        self.fault: Reject | None = None

    def add(self, extension: str, data: bytes, member: tarfile.TarInfo) -> None:
        """Add a member. Raises tarfile.ReadError when its bytes are cut."""
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        if extension in self.members:
            self.fault = Reject(
                "does not fit", f"{shortened(self.key)} has two members .{extension}"
            )
        if extension not in ("json", *TEXTS) and not _is_image(extension):
            data = b""  # of others only the name is needed, to say that they were not read
        self.members[extension] = data

    def entries(self, path: str) -> Iterator[tuple[InputLocation, Any]]:
        """Yield the finished group, or the Reject of its fault; nothing for an empty one."""
        if self.key:
            yield {"file": path, "member": self.first}, self.fault or (self.key, self.members)


def _unpacked(path: str) -> Any:
    with open(path, "rb") as file:
        start = file.read(8)
    return next((unpack for mark, unpack in PACKED if start.startswith(mark)), open)(path, "rb")


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError when anything but zeros follows the end mark, such as a second tar."""
    assert tar.fileobj is not None, "it is open"
    while rest := tar.fileobj.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(
                "more stands behind its end mark; tars are joined by tar -A, not by cat"
            )


def _cut(name: str) -> tuple[str, str]:
    found = KEY.fullmatch(name)
    assert found is not None, "names without an extension are rejected before"
    return found[1], found[2].lower()


def _without_image(key: str, members: dict[str, bytes]) -> Reject:
    """The reason for leaving out a group without an image; it names images that could be read."""
    reason = f"{shortened(key)} has only {', '.join(members) or 'nothing'}"
    unread = [name.rpartition(".")[0] for name in members if _is_image(name)]
    if unread:
        reason += f"; --image-parts {','.join(unread)} reads these"
    return Reject("image missing", reason)


def _member_fault(member: tarfile.TarInfo) -> Reject | None:
    name = shortened(member.name)
    if not member.isreg() or member.issparse():
        kind = "device or special file"
        if member.issym() or member.islnk():
            kind = "link"
        return Reject("tar member refused", f"{name} is a {kind}; only plain files are read")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        return Reject("path leaves its folder", f"{name} is absolute or holds ..")
    if KEY.fullmatch(member.name) is None or path.name.startswith("__"):
        return Reject(
            "tar member refused",
            f"{name} belongs to no sample (a name such as 000017.jpg is expected)",
        )
    if member.size:
        try:
            check_size(name, member.size)
        except Reject as reject:
            return reject
    return None


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2] in ENDINGS


def _captions(
    key: str, members: dict[str, bytes], fields: dict[str, Any], kind: str
) -> dict[str, str]:
    """Return the captions of a group. Raises Reject for a second text of the same kind, which would
    be lost.
    """
    captions: dict[str, str] = {}
    for name in ("coarse", "detailed"):
        if name in fields:
            captions[name] = fields[name]
    if "caption" in fields:
        captions[kind] = fields["caption"]
    texts = [name for name in members if name.rpartition(".")[2] in TEXTS]
    if len(texts) > 1 or any("." in name for name in texts):
        shown = ", ".join(f".{shortened(name, 40)}" for name in texts)
        reason = f"{shortened(key)} has the texts {shown}; a sample has one, its name ends at the first dot"
        raise Reject("does not fit", reason)
    for name in texts:
        captions[kind] = _text(members[name], f".{name}")
    return captions


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Reject(
            "not UTF-8", f"byte {error.start} of {name} is not UTF-8 ({error.reason})"
        ) from error


def _fields(members: dict[str, bytes]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        fields = parsed(_text(members["json"], ".json"))
    except (ValueError, RecursionError) as error:
        raise Reject("not JSON", f".json: {shortened(str(error))}") from error
    if not isinstance(fields, dict):
        raise Reject("does not fit", f".json holds {shortened(fields)}; expected an object")
    check_each_once(fields)
    return {name: value for name, value in fields.items() if value is not None}
