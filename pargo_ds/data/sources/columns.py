"""The columns of a table in any kind of file."""

from __future__ import annotations

from pargo_ds.data.sources.rejects import shortened
from pargo_ds.errors import SourceError


def check_columns(path: str, found: list[str], wanted: list[str]) -> None:
    """Raise SourceError unless the table has each wanted column exactly once."""
    wrong = [name for name in wanted if found.count(name) != 1]
    if wrong:
        raise SourceError(
            f"{path} has {', '.join(f'{found.count(name)} columns {name!r}' for name in wrong)}, expected one; it has "
            f"{shortened(', '.join(map(str, found)) or 'none')}. Without a header line give --columns"
        )
