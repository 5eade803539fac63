"""Build a data set and publish it at its destination: a local folder, or an object store to which
the locally built folder is uploaded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pargo_ds.data.building.build import build_chunks
from pargo_ds.data.building.merge import REJECTS, SUMMARY, Merged, merge, read_summary
from pargo_ds.data.building.plan import DONE, WORK, Plan, differences
from pargo_ds.data.shards.mds import INDEX_NAME
from pargo_ds.errors import BuildError


@dataclass(frozen=True)
class Destination:
    """Where a data set goes: it is built in the folder `local` and uploaded to `remote`
    (s3://bucket/folder), unless that is None.
    """

    local: Path
    remote: str | None = None

    @classmethod
    def of(cls, out: str, work: str | None = None) -> Destination:
        """Return the destination that a command line names. A data set for an object store is built
        in the local folder `work` (default: ./FOLDER).
        """
        if "://" not in out:
            if work is not None:
                raise BuildError(
                    f"--work is the local folder of a build for an object store; {out} is local already"
                )
            return cls(Path(out))
        from pargo_ds.data.shards.s3 import bucket_and_key

        _, key = bucket_and_key(out)
        if not key:
            raise BuildError(f"{out} names a bucket only; expected s3://bucket/folder")
        return cls(Path(work or key.rpartition("/")[2]), out.rstrip("/"))


def finished(destination: Destination, plan: Plan) -> Merged | None:
    """Return the account of the data set if it was built before by the same plan; None if there is
    something left to build.

    Raises BuildError when the folder holds another data set or anything else.
    """
    shutil.rmtree(destination.local / DONE, ignore_errors=True)
    if destination.local.exists() and not destination.local.is_dir():
        raise BuildError(
            f"{destination.local} is a file; expected a folder to write shards into: choose another name"
        )
    if (
        (destination.local / WORK).is_dir()
        or not destination.local.is_dir()
        or not any(destination.local.iterdir())
    ):
        return None
    if not (destination.local / SUMMARY).is_file():
        raise BuildError(
            f"{destination.local} exists already and holds something else; choose another folder"
        )
    there = json.loads((destination.local / SUMMARY).read_text())["plan"]
    differing = differences(there, plan.described())
    if differing:
        raise BuildError(
            f"{destination.local} was built with other settings ({differing}); choose another folder"
        )
    return read_summary(destination.local)


def build(
    plan: Plan,
    destination: Destination,
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    max_rejects: float = 0.1,
    said: Callable[[str], None] = print,
) -> Merged | None:
    """Build the missing chunks. With one part, merge them and return the account; with several
    parts return None, and call `merge` when all parts are built.
    """
    merged = finished(destination, plan)
    if merged is not None:
        said(f"{destination.local} is finished already")
        return merged
    found = build_chunks(
        plan, destination.local, workers=workers, part=part, max_rejects=max_rejects
    )
    if found:
        said(
            f"went on with the unfinished build in {destination.local}: {found:,} chunks were there already"
        )
    if part[1] > 1:
        return None
    return merge(destination.local, max_rejects)


def upload(destination: Destination, merged: Merged, said: Callable[[str], None] = print) -> None:
    """Upload a finished data set: each split with its index last, and then the account. Splits that
    were uploaded before are skipped.

    Raises StoreError as `folder.upload_folder`, also when the store holds another data set there.
    """
    from pargo_ds.data.shards.folder import download, upload_folder

    assert destination.remote is not None, "only for a destination in an object store"
    with tempfile.TemporaryDirectory(prefix="pargo_ds_upload_") as folder:
        for name in sorted(merged.splits):
            local, remote = destination.local / name, f"{destination.remote}/{name}".rstrip("/")
            there = Path(folder) / INDEX_NAME
            if (
                download(f"{remote}/{INDEX_NAME}", there)
                and there.read_bytes() == (local / INDEX_NAME).read_bytes()
            ):
                said(f"{remote} is there already")
                continue
            upload_folder(local, remote)
        if "" not in merged.splits and not download(
            f"{destination.remote}/{SUMMARY}", Path(folder) / "there"
        ):
            account = Path(folder) / "account"
            account.mkdir()
            for name in (REJECTS, SUMMARY):
                shutil.copyfile(destination.local / name, account / name)
            upload_folder(account, destination.remote, last=SUMMARY)
