"""The errors of the package: faults of the user and faults of a machine.

A fault of the user occurs again at each start, so a job that ends with a UserError is not started
again. A fault of a machine (a disk, a network, another rank) may be gone at the next start.
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """The user must change something; the message says what was found, what was expected and
    where.
    """


class MachineFault(RuntimeError):
    """A disk, a network or another process failed; a new start may succeed."""


class ConfigError(UserError):
    """Settings that cannot be used; the message lists every fault with its place in the file."""


class RunBusyError(ConfigError):
    """Another process is training this run."""


class SampleError(UserError):
    """A sample does not fit the format; the message names its id and the reason."""


class SourceError(UserError):
    """An input file cannot be read; the message names the file, the line if it is known, and what
    to do.
    """


class BuildError(UserError):
    """A build cannot start or continue; the message says what to do."""


class StoreError(UserError):
    """An object store or an address in it cannot be used; the message names the address and the
    endpoint.
    """


class StoreUnreachableError(StoreError, MachineFault):
    """An object store does not answer, or broke off, for longer than one waits for it. That may
    pass, so it is a fault of the machine, although a caller may take it as any other StoreError.
    """


class CacheError(UserError):
    """This job cannot use a folder of the cache."""


class CaptionError(UserError):
    """A stage of captioning cannot start or continue; the message says what to do."""


class GlyphError(UserError):
    """An emoji or a style of emoji is not available; the message says what to do."""


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the file or setting at fault."""


class ShardError(MachineFault):
    """A shard is damaged or cannot be read; the message names its file."""


class OtherRankError(MachineFault):
    """Another rank failed in `distributed.run_on_all_ranks`; the message is that of the other rank. This
    rank is healthy.
    """


def comes_again(error: BaseException) -> bool:
    """Whether a new start would end in the same way: a fault of the user, or a loss that is no
    number.
    """
    if isinstance(error, MachineFault):
        return False
    return isinstance(error, (ValueError, FloatingPointError))


def listed(names: Iterable[object], most: int) -> str:
    """Return names for a message: the first `most` of them, and how many more there are."""
    shown = [str(name) for name in names]
    text = ", ".join(shown[:most])
    if len(shown) > most:
        text += f" and {len(shown) - most} more"
    return text
