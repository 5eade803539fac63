"""The image of a run's masks: what is drawn is what masks.py says, and faults are one clear line."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import ROOT, draw

from pargo_ds.assembly.configs import model_config
from pargo_ds.config import parse_config
from pargo_ds.inspection import mask_figure
from pargo_ds.model.masks import cascade_mask, partial_global_mask, patches_of_partial


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("show_masks", ROOT / "tools/show_masks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_file(tiny_run, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run))
    return path


def test_masks_and_photograph_are_drawn_for_a_run_file(tool, run_file, tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "masks.png"
    photo.write_bytes(draw("red", 4))
    changes = ["--set", "projector.layers=3", "--set", "projector.grouping=block"]
    assert tool.main([str(run_file), str(out), "--image", str(photo), *changes]) == 0
    assert (
        "10 visual tokens of 16 patches (8 partial + 2 global, 3 layers, width 32, cascade shifted, grouping block)"
        in capsys.readouterr().out
    )
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500


def test_panels_hold_the_masks_of_every_layer_and_the_groups(tiny_run):
    config = model_config(parse_config(tiny_run), None, offline=True)
    figure = mask_figure.attention_figure(config, Image.new("RGB", (64, 64)))
    panels = [axes.images[0].get_array() for axes in figure.axes[:3]]
    expected = [cascade_mask(8, 1, 2), cascade_mask(8, 2, 2), partial_global_mask(8, 2, 16)]
    for found, mask in zip(panels, expected, strict=True):
        assert np.array_equal(found, mask.numpy())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[-2:] == ["raster (this run)", "block"]
    assert [text.get_text() for text in figure.axes[-1].texts] == [str(i) for i in range(8)]


@pytest.mark.parametrize("grouping", ["raster", "block"])
def test_every_number_stands_on_a_patch_that_its_token_sees(grouping):
    for num_partial in range(1, 37):
        groups = patches_of_partial(num_partial, 36, grouping)
        owner = mask_figure.owners(groups, 6)
        for token, patches in enumerate(groups):
            x, y = mask_figure.middle(patches, 6)
            # a middle on a border belongs to either side
            touched = {owner[int(y - e), int(x - f)] for e in (0, 1e-6) for f in (0, 1e-6)}
            assert token in touched


def test_borders_part_patches_of_different_tokens():
    owner = np.array([[0, 0], [0, 1]])
    assert mask_figure.borders(owner) == [[(1, 1), (1, 2)], [(1, 1), (2, 1)]]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--image", "nowhere.png"], "nowhere.png: no such image file"),
        (["--set", "projector.partial_tokens=17"], "17 partial tokens but only 16 patches"),
        (["--set", "projector.cascades=none"], "cascade"),
        (["--set", "projector={type: mlp}"], "projector.type mlp has no masks to draw"),
    ],
)
def test_faults_are_one_clear_line(tool, run_file, tmp_path, capsys, arguments, said):
    assert tool.main([str(run_file), str(tmp_path / "out.png"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("show_masks.py: error: ")
    assert said in error


def test_missing_matplotlib_is_said_with_the_extra_that_has_it(
    tool, run_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert tool.main([str(run_file), str(tmp_path / "out.png")]) == 2
    assert "pip install -e .[demo]" in capsys.readouterr().err
