"""The report renders from a small made-up result; texts are escaped; nothing comes from the
network.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pargo_ds.demo.report import Report, ShownScene, render_html, summary, write_report


def table(value: Any) -> dict[str, Any]:
    return {
        "overall": value,
        "by_type": {"colour": value, "existence": value},
        "by_size": {"salient": value, "small": value},
        "by_concept": {"validation": value, "seen": value},
        "by_type_and_size": {
            "colour": {"salient": value},
            "existence": {"small": value, "salient": value},
        },
    }


def made_up_report(low: float = 0.1, scenes: int = 12) -> Report:
    gap = {"mean": 0.2, "low": low, "high": 0.3}
    result = {
        "accuracy": table(0.75),
        "blind_accuracy": table(0.5),
        "accuracy_minus_blind": {"mean": 0.25, "low": 0.1, "high": 0.4},
        "questions": table(8),
        "caption_loss": {"right": 2.0, "wrong": 2.2, "wrong_minus_right": gap},
        "split": {
            "held_out_style": "none",
            "styles": {"train": ["openmoji"], "validation": ["openmoji"]},
        },
        "run": {"stage 1": {"steps": 4, "seconds_per_step": 1.5}, "versions": {"torch": "2.15.0"}},
    }
    rows = [{"step": step, "loss": 3.0 / step, "validation_loss": None} for step in range(1, 5)]
    rows[-1]["validation_loss"] = 1.0
    line = ("Is there <b>a dog</b>?", "yes & no", "$5", False)
    image = Image.new("RGB", (32, 32), (200, 220, 240))
    mask = np.eye(4, dtype=bool)
    return Report(
        result,
        {"demo_pretrain": rows, "demo_finetune": rows},
        [("layer 1", mask, "partial tokens"), ("PGP", mask, "patches")],
        [
            ShownScene(image, [line, ("What?", "dog", "dog", True)], ("no", "a <cat>"))
            for _ in range(scenes)
        ],
    )


def test_report_writes_its_files(tmp_path: Path) -> None:
    paths = write_report(made_up_report(), tmp_path / "demo")
    assert [path.name for path in paths] == [
        "report.json",
        "report.html",
        "report.png",
        "scene.png",
    ]
    read = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert read["caption_loss"]["wrong_minus_right"] == {"mean": 0.2, "low": 0.1, "high": 0.3}
    assert read["accuracy"]["by_type_and_size"]["existence"]["small"] == 0.75
    with Image.open(io.BytesIO((tmp_path / "demo" / "report.png").read_bytes())) as image:
        assert min(image.size) > 500


def test_page_is_self_contained_and_escaped() -> None:
    page = render_html(made_up_report())
    assert "http" not in page.replace("http-equiv", "")
    assert "<b>a dog" not in page
    assert "Is there &lt;b&gt;a dog&lt;/b&gt;?" in page
    assert page.count('class="card"') == 12
    lead = page[: page.index("All held-out questions: right answers 75.0%, blind 50.0%")]
    assert '<td>What?</td><td>dog</td><td class="right">dog</td><td>a &lt;cat&gt;</td>' in lead
    assert "$" not in page.replace("$5", "")  # every field of the template was filled


def test_page_says_what_the_images_are_and_whether_the_proof_holds() -> None:
    assert "composed scenes, not photographs" in render_html(made_up_report())
    assert "clear of zero: the model uses the image" in render_html(made_up_report(low=0.1))
    assert "does not lie clear of zero" in render_html(made_up_report(low=-0.1))
    assert "does not lie clear of zero" in summary(made_up_report(low=0.0))


@pytest.mark.parametrize("scenes", [0, 1])
def test_report_renders_with_few_scenes(scenes: int, tmp_path: Path) -> None:
    write_report(made_up_report(scenes=scenes), tmp_path)
    assert (tmp_path / "report.png").stat().st_size > 0


def test_a_projector_without_masks_has_no_place_for_them(tmp_path):
    report = dataclasses.replace(made_up_report(), masks=[])
    assert "The projector's masks" in render_html(made_up_report())
    assert "masks" not in render_html(report)
    assert all(path.stat().st_size for path in write_report(report, tmp_path))
