"""The attention benchmark on tiny shapes: every road is timed or listed with its reason; its table keeps its format."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from tiny import ROOT

from pargo_ds.model import attention_table
from pargo_ds.training import timing
from pargo_ds.training.attention_cases import Case
from pargo_ds.training.attention_table_writer import fastest, write_table

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--images", "2", "--heads", "1", "--head-dims", "8", "--repetitions", "3"]
KEYS = {"backend", "shape", "forward_ms", "forward_backward_ms", "speedup_over_dense", "peak_mib", "times_floor"}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("bench_attention", ROOT / "tools/bench_attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _small_copy(monkeypatch):
    monkeypatch.setattr(timing, "copy_bandwidth", lambda device: 1e10)


def test_every_road_is_timed_or_listed_with_its_reason(tool, tmp_path, capsys):
    out, png = tmp_path / "rows.json", tmp_path / "rows.png"
    arguments = ["--sizes", "4/8", "4/ragged", "--default-allocator", "--json", str(out), "--png", str(png)]
    assert tool.main([*TINY, *arguments]) == 0
    result = json.loads(out.read_text())
    shapes = {"partial B=2 h=1 n=4/8 d=8", "partial B=2 h=1 n=4/ragged d=8", "cascade B=2 h=1 n=4/window 2 d=8"}
    assert {row["shape"] for row in result["rows"]} == shapes
    assert all(row.keys() >= KEYS for row in result["rows"])
    assert all(row["speedup_over_dense"] == 1 for row in result["rows"] if row["backend"] == "dense")
    assert {row["backend"] for row in result["rows"]} == {"dense", "fused"}
    assert {row["backend"] for row in result["skipped"]} == {"flash_window", "flash_varlen", "flash"}
    assert all("no FlashAttention runs on cpu" in row["reason"] for row in result["skipped"])
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "skipped: no FlashAttention runs on cpu" in capsys.readouterr().out


def test_emulated_roads_are_timed_when_asked_for_and_uneven_groups_are_named(tool, capsys):
    options = tool.parse_arguments([*TINY, "--sizes", "3/8", "--emulated", "--default-allocator"])
    result = tool.run(options)
    timed = {(row["backend"], row["provider"]) for row in result["rows"]}
    assert timed == {("dense", ""), ("fused", ""), ("flash_varlen", "emulated"), ("flash", "emulated")}
    assert [row["reason"] for row in result["skipped"]] == ["groups are uneven: the rule takes fused"]


def test_quick_prints_the_speedup_and_the_share_of_attention_in_the_projector(tool, capsys):
    arguments = ["--quick", "--repetitions", "3", "--width", "64"]
    assert tool.main(arguments) == 0
    said = capsys.readouterr().out
    assert "partial B=8 h=8 n=288/576 d=64" in said
    assert "default backend of the partial tokens: fused, " in said
    assert said.count("of it attention") == 2


@pytest.mark.parametrize(
    "arguments, said",
    [(["--sizes", "288"], "expected partial tokens / patches"), (["--sizes", "9/8"], "9 partial tokens but only 8")],
)
def test_wrong_sizes_are_one_clear_line(tool, capsys, arguments, said):
    assert tool.main([*TINY, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_floor_counts_each_operand_once():
    case = Case("partial", 64, 8, 288, 576, 64)  # bf16: 113 MB forward, 208 MB more backward
    forward, both = case.floor_bytes(torch.bfloat16)
    q, k = 64 * 288 * 8 * 64 * 2, 64 * 576 * 8 * 64 * 2
    assert forward == 2 * q + 2 * k
    assert both - forward == 3 * q + 4 * k


def test_table_is_rewritten_in_its_own_format(tmp_path):
    original = Path(attention_table.__file__).read_text()
    copy = tmp_path / "table.py"
    shutil.copy(attention_table.__file__, copy)
    write_table({}, {}, copy)
    assert copy.read_text() == original
    write_table({("cpu", 64, 2): "dense", ("Some GPU", 64, 2): "flash_window"}, {("Some GPU", 64, 288): "flash"}, copy)
    rewritten = runpy.run_path(str(copy))
    changed = {("cpu", 64, 2): "dense", ("Some GPU", 64, 2): "flash_window"}
    assert rewritten["PARTIAL"] == attention_table.PARTIAL | changed
    assert rewritten["CASCADE"] == attention_table.CASCADE | {("Some GPU", 64, 288): "flash"}
    assert rewritten["DEFAULTS"] == attention_table.DEFAULTS


def test_fastest_counts_shapes_equally_and_never_the_emulation():
    small, large = Case("partial", 1, 1, 4, 8, 16), Case("partial", 64, 1, 4, 8, 16)

    def row(case, backend, ms, provider=""):
        return case, {"backend": backend, "provider": provider, "shape": case.shape, "forward_backward_ms": ms}

    rows = [row(small, "dense", 1.0), row(small, "fused", 3.0), row(large, "dense", 110.0), row(large, "fused", 100.0)]
    rows += [row(case, "flash_window", 0.1, "emulated") for case in (small, large)]
    assert fastest(rows, CPU) == ({("cpu", 16, 2): "dense"}, {})


def test_calls_take_turns_and_peak_memory_is_what_a_call_allocates():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timing.interleaved_medians(calls, CPU, repetitions=2)
    assert order == list("ababab")
    peak = timing.peak_mib(lambda: torch.ones(2**20).mul(2).add(1), CPU)
    assert 8 <= peak < 13
