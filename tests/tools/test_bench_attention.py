"""The attention benchmark on tiny shapes: every road is timed or listed with its reason."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from tiny import ROOT

from pargo_ds.speed import timing

CPU = torch.device("cpu")
TINY = [
    "--device",
    "cpu",
    "--images",
    "2",
    "--heads",
    "1",
    "--head-dims",
    "8",
    "--repetitions",
    "3",
]
KEYS = {
    "backend",
    "shape",
    "forward_ms",
    "forward_backward_ms",
    "speedup_over_dense",
    "peak_mib",
    "times_floor",
}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "bench_attention", ROOT / "tools/bench_attention.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _small_copy(monkeypatch):
    monkeypatch.setattr(timing, "copy_bandwidth", lambda device: 1e10)


def test_every_road_is_timed_or_listed_with_its_reason(tool, tmp_path, capsys):
    out, png = tmp_path / "rows.json", tmp_path / "rows.png"
    arguments = ["--sizes", "4/8", "4/16", "--default-allocator", "--json", str(out)]
    assert tool.main([*TINY, *arguments, "--png", str(png)]) == 0
    result = json.loads(out.read_text())
    assert list(dict.fromkeys(row["shape"] for row in result["rows"])) == [
        "partial B=2 h=1 n=4/8 d=8",
        "partial B=2 h=1 n=4/16 d=8",
        "cascade B=2 h=1 n=4/window 2 d=8",
    ]
    assert all(row.keys() >= KEYS for row in result["rows"])
    assert all(
        row["speedup_over_dense"] == 1 for row in result["rows"] if row["backend"] == "dense"
    )
    assert {row["backend"] for row in result["rows"]} == {"dense", "fused"}
    assert {row["backend"] for row in result["skipped"]} == {
        "flash_window",
        "flash_varlen",
        "flash",
    }
    assert all("no FlashAttention runs on cpu" in row["reason"] for row in result["skipped"])
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "skipped: no FlashAttention runs on cpu" in capsys.readouterr().out


def test_uneven_groups_are_the_reason_that_flash_window_is_not_timed(tool, capsys):
    result = tool.run(tool.parse_arguments([*TINY, "--sizes", "3/8", "--default-allocator"]))
    reasons = {row["backend"]: row["reason"] for row in result["skipped"]}
    assert reasons["flash_window"] == "groups are uneven: the rule takes fused"
    assert "no FlashAttention runs on cpu" in reasons["flash_varlen"]


def test_quick_prints_the_speedup_and_the_share_of_attention_in_the_projector(tool, capsys):
    arguments = ["--quick", "--repetitions", "3", "--width", "64"]
    assert tool.main(arguments) == 0
    said = capsys.readouterr().out
    assert "partial B=8 h=8 n=288/576 d=64" in said
    assert "default backend of the partial tokens: fused, " in said
    assert said.count("of it attention") == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--sizes", "288"], "expected partial tokens / patches"),
        (["--sizes", "9/8"], "9 partial tokens but only 8"),
    ],
)
def test_wrong_sizes_are_one_clear_line(tool, capsys, arguments, said):
    assert tool.main([*TINY, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_calls_take_turns_and_peak_memory_is_what_a_call_allocates():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timing.interleaved_medians(calls, CPU, repetitions=2)
    assert order == list("ababab")
    peak = timing.peak_mib(lambda: torch.ones(2**20).mul(2).add(1), CPU)
    assert 8 <= peak < 13
