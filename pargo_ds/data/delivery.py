"""A data set from its plan to its place: a local folder, or built beside and uploaded to an object store."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pargo_ds.data.build import build_chunks
from pargo_ds.data.build_plan import DONE, WORK, BuildError, Plan, differences
from pargo_ds.data.merge import REJECTS, SUMMARY, Merged, merge, read_summary
from pargo_ds.data.shards import INDEX_NAME


@dataclass(frozen=True)
class Place:
    """Where a data set goes: `local` is built, `remote` (s3://bucket/folder) receives it, if there is one."""

    local: Path
    remote: str | None = None

    @classmethod
    def of(cls, out: str, work: str | None = None) -> Place:
        """The place that a command line names; an object store's data set is built in `work` (default: ./FOLDER)."""
        if "://" not in out:
            if work is not None:
                raise BuildError(f"--work is the local folder of a build for an object store; {out} is local already")
            return cls(Path(out))
        from pargo_ds.data.s3 import bucket_and_key

        _, key = bucket_and_key(out)
        if not key:
            raise BuildError(f"{out} names a bucket only; expected s3://bucket/folder")
        return cls(Path(work or key.rpartition("/")[2]), out.rstrip("/"))


def finished(place: Place, plan: Plan) -> Merged | None:
    """The account of the data set when it is there already, made by the same plan; None when there is something to do.

    Raises BuildError when another data set, or anything else, is there.
    """
    shutil.rmtree(place.local / DONE, ignore_errors=True)
    if place.local.exists() and not place.local.is_dir():
        raise BuildError(f"{place.local} is a file; expected a folder to write shards into: choose another name")
    if (place.local / WORK).is_dir() or not place.local.is_dir() or not any(place.local.iterdir()):
        return None
    if not (place.local / SUMMARY).is_file():
        raise BuildError(f"{place.local} exists already and holds something else; choose another folder")
    there = json.loads((place.local / SUMMARY).read_text())["plan"]
    differing = differences(there, plan.described())
    if differing:
        raise BuildError(f"{place.local} was built with other settings ({differing}); choose another folder")
    return read_summary(place.local)


def build(
    plan: Plan,
    place: Place,
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    max_rejects: float = 0.1,
    said: Callable[[str], None] = print,
) -> Merged | None:
    """Build what is missing; merge it when it is one part (else None: `merge` does it when all parts are there)."""
    merged = finished(place, plan)
    if merged is not None:
        said(f"{place.local} is finished already")
        return merged
    found = build_chunks(plan, place.local, workers=workers, part=part, max_rejects=max_rejects)
    if found:
        said(f"went on with the unfinished build in {place.local}: {found:,} chunks were there already")
    return merge(place.local, max_rejects) if part[1] == 1 else None


def upload(place: Place, merged: Merged, said: Callable[[str], None] = print) -> None:
    """Upload a finished data set, each split with its index last, then its account; splits that are there are skipped.

    Raises StoreError as `stores.upload_folder`, also when another data set is there.
    """
    from pargo_ds.data.stores import download, upload_folder

    assert place.remote is not None, "only for a place in an object store"
    with tempfile.TemporaryDirectory(prefix="pargo_ds_upload_") as folder:
        for name in sorted(merged.splits):
            local, remote = place.local / name, f"{place.remote}/{name}".rstrip("/")
            there = Path(folder) / INDEX_NAME
            if download(f"{remote}/{INDEX_NAME}", there) and there.read_bytes() == (local / INDEX_NAME).read_bytes():
                said(f"{remote} is there already")
                continue
            upload_folder(local, remote)
        if "" not in merged.splits and not download(f"{place.remote}/{SUMMARY}", Path(folder) / "there"):
            account = Path(folder) / "account"
            account.mkdir()
            for name in (REJECTS, SUMMARY):
                shutil.copyfile(place.local / name, account / name)
            upload_folder(account, place.remote, last=SUMMARY)
