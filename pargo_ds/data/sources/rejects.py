"""Rejects: inputs that cannot become a sample, and their table for people."""

from __future__ import annotations

import errno
from collections.abc import Mapping

CANNOT_READ = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
)
"""System errors that are caused by the path that an input names. Other errors (a failing disk, no
memory) stop the build.
"""


class Reject(Exception):
    """One input cannot become a sample. Rejects are counted by `kind`, a short heading; `reason`
    says what was found.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


def reject_unreadable(name: str, error: OSError) -> Reject:
    """Return the reject for a path that an input names. Raises `error` itself when it is a fault of
    the machine.
    """
    if isinstance(error, FileNotFoundError):
        return Reject("image missing", f"there is no file {shortened(name)}")
    if error.errno in CANNOT_READ:
        return Reject("image unreadable", f"{shortened(name)} cannot be read ({error.strerror})")
    raise error


def shortened(value: object, length: int = 200) -> str:
    """Return the text of a value for a message, shortened to `length` characters."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) > length:
        return f"{text[:length]}... ({len(text):,} characters)"
    return text


def reject_table(
    inputs: int, samples: int, rejects: Mapping[str, int], changed: Mapping[str, int] | None = None
) -> str:
    """Return the account of a build as a table: the numbers of inputs and samples, of inputs that
    were left out by reason, and of changed samples by kind of change.
    """
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
    if not inputs:
        return ""
    return f"{100 * count / inputs:6.2f} %"
