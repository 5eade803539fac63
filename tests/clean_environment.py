"""A virtual environment with a few installed distributions and what they need, and nothing else;
without downloads.
"""

from __future__ import annotations

import sys
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def clean_environment(folder: Path, names: list[str], first: list[str] | None = None) -> Path:
    """Make the environment in `folder`; returns its Python.

    Its site-packages are links to what this interpreter has installed. Distributions in the folders
    `first` are taken before those of this interpreter.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    installed = {
        canonicalize_name(found.metadata["Name"]): found
        for path in (sys.path, first or [])
        for found in reversed(list(distributions(path=path)))
    }
    for name in needed(names, installed):
        for entry in top_level(installed[name]):
            link = site / entry
            if not link.exists():
                link.symlink_to(Path(str(installed[name].locate_file(""))) / entry)
    return folder / "bin" / "python"


def needed(names: list[str], installed: dict[str, Distribution]) -> set[str]:
    """The distributions `names` and, over all their requirements and extras, what they need of what
    is installed.
    """
    done: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done or name not in installed:
            continue
        done.add((name, extra))
        for text in installed[name].requires or []:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(wanted.name), each) for each in ("", *wanted.extras)]
    return {name for name, _ in done}


def top_level(distribution: Distribution) -> set[str]:
    """Files and folders directly in site-packages that a distribution has put there."""
    parts = {path.parts[0] for path in distribution.files or [] if not path.is_absolute()}
    return parts - {"..", "__pycache__"}
