"""Promises of the reading benchmark: distinct real images, every one read once, fair comparison,
clear refusals.
"""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ROOT

from pargo_ds.speed.bench_formats import OPENERS, WRITERS, missing
from pargo_ds.speed.bench_images import cut_images, find_photographs
from pargo_ds.speed.read_benchmark import DECODERS, SIDE, one_pass, ratios

FILE = ROOT / "tools/bench_data.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_data", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    pytest.importorskip("matplotlib", reason="its sample photograph is cut: pip install -e .[dev]")
    return find_photographs()


def test_cuts_are_distinct_images_of_the_wanted_size(photographs: list[Path]) -> None:
    images = cut_images(photographs, 12, (320, 240))
    assert len(set(images)) == 12
    assert {Image.open(io.BytesIO(image)).size for image in images} == {(320, 240)}
    assert images == cut_images(photographs, 12, (320, 240))
    decoded = [np.asarray(Image.open(io.BytesIO(image)), dtype=float) for image in images]
    assert min(np.abs(one - other).mean() for one in decoded[:6] for other in decoded[6:]) > 5


def test_without_photographs_it_says_what_to_do(tmp_path: Path, photographs: list[Path]) -> None:
    with pytest.raises(ValueError, match="name a folder of some with --photographs"):
        find_photographs([tmp_path])
    with pytest.raises(ValueError, match="half as large as 90000 x 90000"):
        cut_images(photographs, 1, (90_000, 90_000))


def test_both_ways_of_decoding_give_the_same_square_up_to_rounding(photographs: list[Path]) -> None:
    (image,) = cut_images(photographs, 1, (640, 480))
    ours, pillow = DECODERS["ours"](image), DECODERS["pillow"](image)
    assert ours.shape == pillow.shape == (3, SIDE, SIDE)
    assert ours.dtype == pillow.dtype == torch.uint8
    # they round differently, see tests/model/test_processing.py
    assert (ours.int() - pillow.int()).abs().max() <= 2


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_loader_gives_every_image_once(
    name: str, tmp_path: Path, photographs: list[Path]
) -> None:
    if missing(name):
        pytest.skip(f"{name} is not installed: {missing(name)}")
    images = cut_images(photographs, 70, (64, 48))
    WRITERS[name](images, tmp_path / name)
    start = OPENERS[name](tmp_path / name)
    for _ in range(2):  # it can start again
        read = [image for batch, _, _ in start(DECODERS["raw"]) for image in batch]
        assert sorted(read) == sorted(images)


def test_a_loader_that_loses_images_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="gave 64 of 65 images"):
        one_pass([(None, 32, 0.0), (None, 16, 0.1), (None, 16, 0.2)], 65)


def test_ratios_compare_like_with_like() -> None:
    speeds = {("mds", "raw"): 50, ("litdata", "raw"): 100, ("mds", "ours"): 9, ("litdata", "ours"): 10,
              ("webdataset", "ours"): 8, ("webdataset", "pillow"): 90, ("mds", "pillow"): 3}  # fmt: skip
    rows = [
        {"loader": loader, "decode": decode, "images_per_s": rate, "cpu_ms_per_image": 1e3 / rate}
        for (loader, decode), rate in speeds.items()
    ]
    expected = {"of_pillow": 3, "of_fastest_decoded": 0.9, "of_fastest_raw": 0.5}
    assert ratios(rows)["clock"] == pytest.approx(expected)
    assert ratios(rows)["cpu"] == pytest.approx(expected)
    alone = [row for row in rows if row["loader"] == "mds"]
    assert ratios(alone)["clock"]["of_fastest_decoded"] is None


def test_it_measures_and_lists_what_is_not_installed(
    tool: ModuleType, tmp_path: Path, photographs: list[Path], capsys: pytest.CaptureFixture
) -> None:
    figures = tmp_path / "read.json"
    command = [
        "read",
        "--images",
        "160",
        "--sizes",
        "96x64",
        "--repetitions",
        "1",
        "--json",
        str(figures),
    ]
    assert tool.main(command) == 0
    printed = capsys.readouterr().out
    result = json.loads(figures.read_text())["sizes"]["96x64"]
    rows = {(row["loader"], row["decode"]): row for row in result["rows"]}
    assert {("mds", "raw"), ("mds", "ours"), ("mds", "pillow")} <= set(rows)
    assert all(row["images_per_s"] > 0 < row["cpu_ms_per_image"] for row in rows.values())
    assert set(result["skipped"]) | {loader for loader, _ in rows} == {
        "mds",
        "webdataset",
        "litdata",
    }
    for name in result["skipped"]:
        assert f"--no-deps {name}" in printed
    assert "ours / Pillow pipeline" in printed


@pytest.mark.parametrize("arguments, said", [
    (["--sizes", "640"], "--sizes 640: expected width x height"),
    (["--images", "5"], "--images must be at least 128"),
    (["--json", "no/where.json"], "the folder no does not exist"),
    (["--photographs", "nowhere"], "no JPEG photographs"),
])  # fmt: skip
def test_it_refuses_what_cannot_be_measured(
    tool: ModuleType, arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert tool.main(["read", *arguments]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_each_subcommand_explains_itself(tool: ModuleType, capsys: pytest.CaptureFixture) -> None:
    for command in ("plan", "read"):
        with pytest.raises(SystemExit) as stop:
            tool.main([command, "--help"])
        assert stop.value.code == 0
        assert "--json FILE" in capsys.readouterr().out
