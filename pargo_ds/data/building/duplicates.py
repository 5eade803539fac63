"""Find samples that repeat the content or the id of an earlier one. Two samples are compared by
8-byte hashes; the search takes about 50 bytes of memory for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pargo_ds.data.shards.schema import id_digest


@dataclass
class Repeats:
    """What is done with repeated samples. `dropped`: positions of samples that are left out, with
    the kind of reject and the id of the earlier sample; `renamed`: positions of samples that get a
    new id.
    """

    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    renamed: dict[int, str] = field(default_factory=dict)


def repeated(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return a mask (values,) of the values that occur more than once."""
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
    """Decide in the order of the samples which of them repeat an earlier sample that is kept.

    A sample with equal content is dropped. A sample with an equal id and other content gets a
    number (`same_id` "number": the first free id of ID#2, ID#3, ...) or is dropped, too.

    Args:
        ids: (samples,) hashes of the ids.
        contents: (samples,) hashes of the contents.
        names: returns the ids at the given positions, in order.
        same_id: "number" or "drop".
    """
    found = Repeats()
    suspects = np.flatnonzero(repeated(ids) | repeated(contents))
    if not len(suspects):
        return found
    taken = np.sort(ids)
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
