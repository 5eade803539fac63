"""WebDataset tars: members that share a key are one sample; read as a stream, nothing is ever unpacked."""

from __future__ import annotations

import bz2
import dataclasses
import glob
import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pargo_ds.data.schema import Sample
from pargo_ds.data.sources.conversations import Dialogue, dialogue_of
from pargo_ds.data.sources.json_files import check_each_once, parsed
from pargo_ds.data.sources.keys import CONVERSATION_KEYS, is_empty, normal
from pargo_ds.data.sources.pictures import ENDINGS, check_count, check_size
from pargo_ds.data.sources.rejects import Reject, SourceError, shortened
from pargo_ds.data.sources.source import Chunk, Source, Where, text_id

KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"""Key and extension of a member: WebDataset cuts the file name at its first dot."""
TEXTS = ("txt", "caption")
HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
MAX_HEADER = 1 << 20
"""Long names and extended headers, which tarfile reads into memory, and the most bytes that one may have."""
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, ValueError, OSError)
PACKED: tuple[tuple[bytes, Callable[[str, str], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
)
"""First bytes of a packed tar, and what unpacks it: all that follows on the first part (pigz, bgzip, cat), its checksum
compared. tarfile's own streams stop behind the first part and compare nothing."""


class NoEndMark(tarfile.ReadError):
    """The file ends where the next header should begin."""


class TarEntry(tarfile.TarInfo):
    """A header that is never skipped when it is broken: tarfile ends there without a word."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> TarEntry:
        """As tarfile's, but raises ReadError for all but a sound header; EOFHeaderError marks the end."""
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.EmptyHeaderError as error:
            raise NoEndMark("it has no end mark; it may have been cut") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"broken header ({error})") from error
        if entry.type in HEADERS and entry.size > MAX_HEADER:
            raise tarfile.ReadError(f"header of type {entry.type!r} with {entry.size:,} bytes")
        return entry


def tar_files(names: Sequence[str]) -> tuple[str, ...]:
    """The tars that folders, glob patterns and file names stand for; those of a folder or pattern by name.

    Raises SourceError when one stands for nothing.
    """
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            own = sorted(str(path) for path in Path(name).rglob("*") if path.name.endswith((".tar", ".tar.gz", ".tgz")))
        elif os.path.isfile(name):
            own = [name]
        else:
            own = sorted(glob.glob(name))
        if not own:
            raise SourceError(f"{name} is no tar, no folder with .tar or .tar.gz files, and matches none as a pattern")
        found += own
    return tuple(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDataset(Source):
    """Pictures by extension (in their order in the tar), .txt or .caption as the caption, .json as fields.

    A .json member may hold caption, coarse, detailed, a conversation and id; it is overruled by .txt. A picture whose
    name has a further part (000017.mask.png) is taken when `image_parts` names that part. Members that are not read are
    counted; a text that is not read makes its sample a reject. Each tar is one chunk.
    """

    caption_as: Literal["coarse", "detailed"] = "coarse"
    image_parts: tuple[str, ...] = ()

    def chunks(self) -> Iterator[Chunk]:
        for path in self.files:
            yield Chunk(path, os.path.getsize(path))

    def entries(self, payload: Any) -> Iterator[tuple[Where, Any]]:
        """The groups of a tar; (key, {extension: bytes}) each, or a Reject for a member or group that cannot be used.

        A damaged tar gives all that stands before the damage, then one Reject for the rest.
        """
        group = _Group("", "")
        last = "its start"
        try:
            with _unpacked(payload) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=TarEntry) as tar:
                for member in tar:
                    tar.members = []  # or a tar of a million members fills the memory
                    last = shortened(member.name)
                    if member.isdir():
                        continue
                    if PurePosixPath(member.name).name.startswith("."):
                        continue  # .DS_Store and the ._ files of macOS: nobody's data
                    where = {"file": payload, "member": shortened(member.name, 1000)}
                    fault = _member_fault(member)
                    if fault is not None:
                        yield where, fault
                        continue
                    key, extension = _cut(member.name)
                    if key != group.key:
                        yield from group.entries(payload)
                        group = _Group(key, where["member"])
                    content = tar.extractfile(member)
                    group.add(extension, content.read() if content else b"", member)
                yield from group.entries(payload)
                group = _Group("", "")
                _check_end(tar)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault
            if isinstance(error, NoEndMark):
                yield from group.entries(payload)
            elif group.key:
                place = {"file": payload, "member": group.first}
                yield place, Reject("tar damaged", f"the tar is damaged within or after {shortened(group.key)}")
            reason = f"the rest of the tar after {last} is lost: {shortened(str(error))}"
            yield {"file": payload, "member": last}, Reject("tar damaged", reason)

    def identify(self, where: Where, entry: Any) -> str:
        key, members = entry
        return text_id(_fields(members).get("id"), key)

    def sample(self, entry: Any, sample_id: str) -> Sample:
        key, members = entry
        fields = _fields(members)
        images = [data for extension, data in members.items() if self._is_read(extension)]
        check_count(len(images))
        captions = _captions(key, members, fields, self.caption_as)
        dialogue = Dialogue([], images)
        if any(normal(name) in CONVERSATION_KEYS and not is_empty(value) for name, value in fields.items()):
            dialogue = dialogue_of(fields, images)
        if not images and not dialogue.turns:
            more = [name for name in members if _is_picture(name)]
            hint = f"; --image-parts {','.join(name.rpartition('.')[0] for name in more)} reads these" if more else ""
            raise Reject("picture missing", f"{shortened(key)} has only {', '.join(members) or 'nothing'}{hint}")
        unread = [name for name in members if not self._is_read(name) and name not in ("json", *TEXTS)]
        changed = [*dialogue.changed, *(f"members not read: .{shortened(name, 40)}" for name in sorted(unread))]
        meta = {"changed": changed} if changed else {}
        return Sample(id=sample_id, images=images, turns=dialogue.turns, captions=captions, meta=meta)

    def _is_read(self, extension: str) -> bool:
        part, _, _ = extension.rpartition(".")
        return _is_picture(extension) and (not part or part in self.image_parts)


class _Group:
    """Members with one key, as they come."""

    def __init__(self, key: str, first: str) -> None:
        self.key = key
        self.first = first
        self.members: dict[str, bytes] = {}
        self.fault: Reject | None = None

    def add(self, extension: str, data: bytes, member: tarfile.TarInfo) -> None:
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        if extension in self.members:
            self.fault = Reject("does not fit", f"{shortened(self.key)} has two members .{extension}")
        wanted = extension in ("json", *TEXTS) or _is_picture(extension)
        self.members[extension] = data if wanted else b""  # its name is enough to say that it was not read

    def entries(self, path: str) -> Iterator[tuple[Where, Any]]:
        if self.key:
            yield {"file": path, "member": self.first}, self.fault or (self.key, self.members)


def _unpacked(path: str) -> Any:
    with open(path, "rb") as file:
        start = file.read(8)
    return next((unpack for mark, unpack in PACKED if start.startswith(mark)), open)(path, "rb")


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError when anything but zeros stands behind the end mark, such as a second tar."""
    assert tar.fileobj is not None, "it is open"
    while rest := tar.fileobj.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("more stands behind its end mark; tars are joined by tar -A, not by cat")


def _cut(name: str) -> tuple[str, str]:
    found = KEY.fullmatch(name)
    assert found is not None, "names without an extension are rejected before"
    return found[1], found[2].lower()


def _member_fault(member: tarfile.TarInfo) -> Reject | None:
    name = shortened(member.name)
    if not member.isreg() or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "device or special file"
        return Reject("tar member refused", f"{name} is a {kind}; only plain files are read")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        return Reject("path leaves its folder", f"{name} is absolute or holds ..")
    if KEY.fullmatch(member.name) is None or path.name.startswith("__"):
        return Reject("tar member refused", f"{name} belongs to no sample (a name such as 000017.jpg is expected)")
    if member.size:
        try:
            check_size(name, member.size)
        except Reject as reject:
            return reject
    return None


def _is_picture(extension: str) -> bool:
    return extension.rpartition(".")[2] in ENDINGS


def _captions(key: str, members: dict[str, bytes], fields: dict[str, Any], kind: str) -> dict[str, str]:
    """The captions of a group. Raises Reject for a second text of the same kind, which would be lost."""
    captions = {name: fields[name] for name in ("coarse", "detailed") if name in fields}
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
        raise Reject("not UTF-8", f"byte {error.start} of {name} is not UTF-8 ({error.reason})") from error


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
