"""Which samples came before: by content, by id. Exact up to 8-byte hashes, in some 50 bytes a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pargo_ds.data.schema import id_digest


@dataclass
class Repeats:
    """Samples that are left out (position -> kind, id that they repeat) and those that get a new id."""

    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    renamed: dict[int, str] = field(default_factory=dict)


def repeated(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values (values,) occur more than once."""
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    found = np.zeros(len(values), np.bool_)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return found


def find_repeats(
    ids: NDArray[np.uint64],
    contents: NDArray[np.uint64],
    names: Callable[[NDArray[np.int64]], Iterator[str]],
    same_id: str,
) -> Repeats:
    """Go through the samples (samples,) in order and decide what repeats an earlier one that is kept.

    Equal content is dropped. An equal id with other content gets a number (`same_id` "number": ID#2, ID#3, ..., the
    first that is free) or is dropped too. `names` gives the ids of the positions that it is asked for, in order.
    """
    found = Repeats()
    suspects = np.flatnonzero(repeated(ids) | repeated(contents))
    taken = np.sort(ids) if len(suspects) else ids
    new: set[int] = set()
    of_content: dict[int, str] = {}
    count_of_id: dict[int, int] = {}
    for position, name in zip(suspects.tolist(), names(suspects), strict=True):
        content, key = int(contents[position]), int(ids[position])
        if content in of_content:
            found.dropped[position] = ("duplicate content", of_content[content])
            continue
        if key in count_of_id and same_id == "drop":
            found.dropped[position] = ("duplicate id", name)
            continue
        if key in count_of_id:
            number = count_of_id[key] + 1
            while _is_taken(id_digest(f"{name}#{number}"), taken, new):
                number += 1
            count_of_id[key] = number
            name = found.renamed[position] = f"{name}#{number}"
            new.add(id_digest(name))
        else:
            count_of_id[key] = 1
        of_content[content] = name
    return found


def _is_taken(digest: int, taken: NDArray[np.uint64], new: set[int]) -> bool:
    place = int(np.searchsorted(taken, np.uint64(digest)))
    return digest in new or (place < len(taken) and int(taken[place]) == digest)
