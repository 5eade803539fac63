#!/usr/bin/env python3
"""Compare this interpreter's packages with setup.py, without network; used by `make ... SYSTEM=1`.

Exit status 1 and one line for each package that is missing or too old. Packages of the extra `demo`
that only the demo needs are reported as warnings, so that the tests can run on a machine to which
only wheels were carried.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.py"
NEEDED_FOR_TESTS = ("pytest", "hypothesis", "pytest-timeout", "ruff", "matplotlib")


def read_lists(setup: Path) -> dict[str, list[str]]:
    """Return the literals INSTALL_REQUIRES and EXTRAS_REQUIRE of setup.py as {"install": [...],
    extra: [...]}.
    """
    found: dict[str, object] = {}
    for node in ast.parse(setup.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return {"install": found["INSTALL_REQUIRES"], **found["EXTRAS_REQUIRE"]}  # type: ignore[dict-item]


def complaint(requirement: str) -> str | None:
    """Describe what is wrong with one requirement in this interpreter; None if nothing is."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name}: missing, {requirement} is needed"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{wanted.name}: {version} found, {requirement} is needed"
    return None


def main() -> int:
    """Print what is missing. Return 1 if the tests need some of it, else 0."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"using {sys.executable} (Python {sys.version.split()[0]}) as it is")
    try:
        import packaging.requirements  # noqa: F401
    except ImportError:
        print("error: packaging: missing; install the packages of setup.py into this interpreter")
        return 1
    lists = read_lists(SETUP)
    dev = [item for item in lists["dev"] if item.startswith(NEEDED_FOR_TESTS)]
    errors = [text for item in lists["install"] + dev if (text := complaint(item))]
    warnings = [text for item in lists["demo"] if (text := complaint(item))]
    for text in warnings:
        print(f"warning: {text} by the demo")
    for text in errors:
        print(f"error: {text}")
    if errors:
        print(
            "install them into this interpreter, or leave out SYSTEM=1 to have a virtual environment made"
        )
    return 1 if errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
