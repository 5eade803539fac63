"""Every family of causal language models trains exactly or is refused, on every line of
transformers; docs/models.md says which.

To renew the table of docs/models.md: `python tests/model/test_families.py A.json B.json C.json`
prints it from what family_worker.py wrote under each line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = ("4.57.6", "5.17.0", "5.24.0")
WORDS = {
    "packed": "one row",
    "rows": "padded rows",
    "refused": "refused",
    "unknown": "—",
    "broken": "broken",
}
WANTED = "qwen2_moe qwen3_moe qwen3_next gpt_oss olmoe phimoe granitemoe falcon_h1 jamba"
"""Families that must train on one road or the other."""


def word(result: dict) -> str:
    return WORDS[result.get("road", result["verdict"])]


def documented(version: str) -> dict[str, str]:
    """Family -> word, of one column of the table in docs/models.md."""
    lines = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    head = next(row for row in rows if row[0] == "family")
    return {
        row[0]: row[head.index(version)]
        for row in rows
        if len(row) == len(head) and row[0] not in ("family", "---")
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", LINES)
def test_every_family_is_exact_or_refused_as_the_docs_say(version, tmp_path):
    from transformers_lines import line_path

    path = os.pathsep.join([*line_path(version), str(ROOT), os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "families.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/model/family_worker.py"), str(out)],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["transformers"] == version
    families = found["families"]
    assert {name: one["why"] for name, one in families.items() if one["verdict"] == "failed"} == {}
    # Measured: 1.9e-5 at most, in families that transformers computes in float32; a leak is 1e-1
    # and more.
    wrong = {
        n: one
        for n, one in families.items()
        if max(one.get(k, 0) for k in ("logits", "gradients", "loss")) > 1e-4
    }
    assert wrong == {}
    assert {name: word(families[name]) for name in WANTED.split()}.items() <= {
        (name, road) for name in WANTED.split() for road in ("one row", "padded rows")
    }
    assert {name: word(one) for name, one in families.items()} == documented(version)


def table(results: list[dict]) -> str:
    """The table of docs/models.md from what family_worker.py wrote, line by line."""
    lines = [
        f"| family | {' | '.join(one['transformers'] for one in results)} |",
        "| --- | --- | --- | --- |",
    ]
    for name in results[0]["families"]:
        lines.append(f"| {name} | {' | '.join(word(one['families'][name]) for one in results)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([json.loads(Path(path).read_text()) for path in sys.argv[1:]]))
