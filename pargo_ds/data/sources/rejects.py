"""Inputs that cannot become a sample, and files that cannot be read at all."""

from __future__ import annotations

import errno
from collections.abc import Mapping

CANNOT_READ = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR)
"""System errors that speak of the path that an input names; others (a failing disk, no memory) stop the build."""


class SourceError(ValueError):
    """A whole file that cannot be read; the message names the file, the line where known, and what to do."""


class Reject(Exception):
    """One input that cannot become a sample. `kind` is a short heading to count by, `reason` says what was found."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


def reject_unreadable(name: str, error: OSError) -> Reject:
    """The reject for a path that an input names; raises `error` itself when it is the machine's fault."""
    if isinstance(error, FileNotFoundError):
        return Reject("picture missing", f"there is no file {shortened(name)}")
    if error.errno in CANNOT_READ:
        return Reject("picture unreadable", f"{shortened(name)} cannot be read ({error.strerror})")
    raise error


def shortened(value: object, length: int = 200) -> str:
    """What an error or a reject shows of a value that may be of any size."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def reject_table(
    inputs: int, samples: int, rejects: Mapping[str, int], changed: Mapping[str, int] | None = None
) -> str:
    """The account of a build as a table: inputs, samples, how many were left out for which reason, what was changed."""
    changed = changed or {}
    width = max(len(name) for name in ("inputs", "samples", *rejects, *changed))
    lines = [_row("inputs", inputs, inputs, width), _row("samples", samples, inputs, width)]
    for title, counts in (("left out:", rejects), ("of the samples:", changed)):
        if counts:
            rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            lines += [f"  {title}", *(_row(name, count, inputs, width) for name, count in rows)]
    return "\n".join(lines)


def _row(name: str, count: int, inputs: int, width: int) -> str:
    return f"  {name:<{width}}  {count:>12,}  {_share(count, inputs)}"


def _share(count: int, inputs: int) -> str:
    return f"{100 * count / inputs:6.2f} %" if inputs else ""
