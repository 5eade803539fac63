"""Runs transformers' ProcessorTesterMixin on ParGoProcessor; prints {test: outcome} as JSON in the last line.

    python processor_mixin.py FOLDER IMAGE

FOLDER holds a saved processor. The mix-in's images lie on the hub: IMAGE, a file, stands for every one of them.
"""

import json
import shutil
import sys
import tempfile
import types
import unittest

import pargo_ds.model  # noqa: F401  (tells the Auto classes of the processor's)
from pargo_ds.model import ParGoProcessor

FOLDER, IMAGE = sys.argv[1:3]


def local_path(address: str) -> str:
    return IMAGE if address.endswith((".png", ".jpg", ".jpeg")) else address


# The mix-in asks a script of transformers' CI, which is in no distribution, where the files of the
# hub lie.
script = types.ModuleType("fetch_hub_objects_for_ci")
script.url_to_local_path = local_path
sys.modules |= {
    script.__name__: script,
    f"utils.{script.__name__}": script,
    "utils": types.ModuleType("utils"),
}

from transformers_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


class ParGoProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = ParGoProcessor
    image_token = "<image>"

    @staticmethod
    def prepare_processor_dict() -> dict[str, int]:
        return {"visual_tokens": 6}

    @classmethod
    def setUpClass(cls) -> None:
        cls.tmpdirname, cls.full_tmpdirname = tempfile.mkdtemp(), None
        shutil.copytree(FOLDER, cls.tmpdirname, dirs_exist_ok=True)

    @classmethod
    def tearDownClass(cls) -> None:
        shutil.rmtree(cls.tmpdirname)


class Outcomes(unittest.TestResult):
    """Last line of each failure; "" for what passed, None for what was skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str | None] = {}

    def addSuccess(self, test) -> None:
        self.found[test._testMethodName] = ""

    def addSkip(self, test, reason) -> None:
        self.found[test._testMethodName] = None

    def addFailure(self, test, error) -> None:
        self.found[test._testMethodName] = f"{error[0].__name__}: {error[1]}"[:400]

    addError = addFailure


outcomes = Outcomes()
unittest.defaultTestLoader.loadTestsFromTestCase(ParGoProcessorTest).run(outcomes)
print(json.dumps(outcomes.found))
