"""Runs tools/convert_checkpoint.py with the tiny vision tower known to timm: arguments are the
tool's.
"""

import runpy

import tiny_release  # noqa: F401  (registers the tower)
from tiny import ROOT

runpy.run_path(str(ROOT / "tools/convert_checkpoint.py"), run_name="__main__")
