"""Builds: the same bytes whoever builds them and however often they are killed; every input
accounted for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore
from tiny import COLOURS, draw

from pargo_ds.data.building.build import build_chunks
from pargo_ds.data.building.delivery import Destination, build, upload
from pargo_ds.data.building.duplicates import find_repeats
from pargo_ds.data.building.merge import merge
from pargo_ds.data.building.plan import WORK, Plan
from pargo_ds.data.shards.folder import upload_folder
from pargo_ds.data.shards.mds import read_index, read_samples
from pargo_ds.data.shards.schema import Sample, id_digest
from pargo_ds.data.sources import Llava, SampleTransform
from pargo_ds.errors import BuildError


def entry(number: int, image: int | None = None, name: str | None = None) -> dict:
    talk = [
        {"from": "human", "value": f"<image>\nWhat is {number}?"},
        {"from": "gpt", "value": f"It is {number}."},
    ]
    return {
        "id": name or f"e{number}",
        "image": f"{number if image is None else image}.png",
        "conversations": talk,
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(80):
        (folder / f"{number}.png").write_bytes(draw(COLOURS[number % 6], number % 9, 32 + number))
    return folder


@pytest.fixture
def plan_of(tmp_path: Path, images: Path):
    """plan_of(entries, **options of Plan): a plan over one JSON file, ten entries a chunk."""

    def make(entries: list, **options) -> Plan:
        path = tmp_path / "entries.json"
        if not path.is_file():
            path.write_text(json.dumps(entries))
        source = Llava(files=(str(path),), image_folder=str(images), chunk_inputs=10)
        return Plan(source=source, shard_bytes=1 << 12, **options)

    return make


def quietly(plan: Plan, out: Path, **options):
    return build(plan, Destination(out), said=lambda _: None, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mixed_entries() -> list:
    """75 inputs: 60 good ones, repeated content, repeated ids, faults."""
    entries: list = [entry(number) for number in range(60)]
    entries.insert(20, entry(3, name="again"))
    entries.insert(44, entry(7))
    for place in (5, 31, 52, 53):
        entries.insert(place, entry(100 + place, image=place, name="e1"))
    for place in (0, 11, 12, 13, 30, 48):
        entries.insert(place, entry(place, image=999))
    return [*entries, None, {"id": [1.5]}, entry(0, image=-1)]


def test_split_result_is_ordinary_mds_in_the_order_of_the_input(tmp_path: Path, plan_of) -> None:
    from streaming import StreamingDataset

    merged = quietly(plan_of([entry(number) for number in range(40)]), tmp_path / "out")
    assert (merged.inputs, merged.samples, merged.left_out, merged.splits) == (40, 40, {}, {"": 40})
    samples = list(read_samples(tmp_path / "out"))
    assert [sample.id for sample in samples] == [f"e{number}" for number in range(40)]
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["pargo_ds"] == {"schema_version": 1}
    assert len(index["shards"]) >= 4
    assert all(shard["raw_data"]["hashes"].keys() == {"xxh64"} for shard in index["shards"])
    dataset = StreamingDataset(local=str(tmp_path / "out"), batch_size=1, validate_hash="xxh64")
    assert [Sample.from_mds(dataset[number]) for number in range(40)] == samples
    names = {shard["raw_data"]["basename"] for shard in index["shards"]}
    assert names | {"index.json", "rejects.jsonl", "build.json"} == set(contents(tmp_path / "out"))


@pytest.mark.parametrize(
    "options", [{}, {"validation": 0.3}, {"validation": 9}, {"compression": "zstd"}]
)
def test_every_input_is_a_sample_a_reject_or_a_duplicate(
    tmp_path: Path, plan_of, options: dict
) -> None:
    entries = mixed_entries()
    merged = quietly(plan_of(entries, **options), tmp_path / "out", max_rejects=0.2)
    assert merged.inputs == len(entries) == 75
    assert merged.left_out == {
        "bad id": 1,
        "does not fit": 1,
        "duplicate content": 2,
        "image missing": 7,
    }
    assert merged.samples == 64
    folders = [tmp_path / "out" / name for name in merged.splits]
    found = {sample.id: sample for folder in folders for sample in read_samples(folder)}
    assert len(found) == 64
    assert set(found) == {f"e{number}" for number in range(60)} | {"e1#2", "e1#3", "e1#4", "e1#5"}
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert len(rejects) == 11
    assert [reject["entry"] for reject in rejects] == sorted(reject["entry"] for reject in rejects)
    assert {reject["repeats"] for reject in rejects if reject["kind"] == "duplicate content"} == {
        "e3",
        "e7",
    }
    for reject in rejects:
        given = entries[reject["entry"] - 1]
        assert given is None or given["id"] == reject["id"] or reject["kind"] == "bad id"
    if "validation" in options:
        validation = {
            sample.id.partition("#")[0] for sample in read_samples(tmp_path / "out" / "validation")
        }
        trained = {
            sample.id.partition("#")[0] for sample in read_samples(tmp_path / "out" / "train")
        }
        assert not validation & trained, "samples of one id, often one image, stay on one side"
        wanted = {9: range(9, 12), 0.3: range(10, 30)}[options["validation"]]
        assert merged.splits["validation"] in wanted


def test_same_id_can_be_dropped_instead(tmp_path: Path, plan_of) -> None:
    merged = quietly(plan_of(mixed_entries(), same_id="drop"), tmp_path / "out", max_rejects=0.2)
    assert merged.left_out["duplicate id"] == 4
    assert merged.samples == 60


def test_bytes_do_not_depend_on_the_parts(tmp_path: Path, plan_of) -> None:
    plan = plan_of(mixed_entries(), validation=7)
    quietly(plan, tmp_path / "one", max_rejects=0.2)
    expected = contents(tmp_path / "one")
    for part in (2, 0, 1):
        assert quietly(plan, tmp_path / "parts", part=(part, 3), max_rejects=0.2) is None
        if part != 1:
            with pytest.raises(BuildError, match=r"of 8 chunks are missing"):
                merge(tmp_path / "parts")
        assert not (tmp_path / "parts" / "train").exists()
    merge(tmp_path / "parts", 0.2)
    assert contents(tmp_path / "parts") == expected


def _build_in_child(plan: Plan, out: Path) -> int:
    """Start a build in a forked process (it has all modules at hand); return its process id."""
    child = os.fork()
    if child == 0:
        os.close(2)
        status = 1
        try:
            quietly(plan, out, max_rejects=0.2)
            status = 0
        finally:
            os._exit(status)
    return child


def test_killed_builds_go_on_and_give_the_same_bytes(tmp_path: Path, plan_of) -> None:
    """30 kills at random moments, merging included; the index is never there without all of its
    shards.
    """
    plan = plan_of(mixed_entries(), validation=7)
    started = time.monotonic()
    quietly(plan, tmp_path / "whole", max_rejects=0.2)
    usual = time.monotonic() - started
    expected = contents(tmp_path / "whole")
    rng = random.Random(4)
    out, kills = tmp_path / "killed", 0
    while kills < 30:
        child = _build_in_child(plan, out)
        time.sleep(rng.uniform(0, usual))
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        kills += killed
        if not killed:
            usual *= 0.8  # the first build was slower, so that children end before the kill
        for split in ("train", "validation"):
            if (out / split / "index.json").is_file():
                named = {shard["raw_data"]["basename"] for shard in read_index(out / split).shards}
                assert named <= {path.name for path in (out / split).iterdir()}
        if (out / "build.json").is_file() and not (out / WORK).exists():
            quietly(plan, out)
            assert contents(out) == expected
            shutil.rmtree(out)
    quietly(plan, out, max_rejects=0.2)
    assert contents(out) == expected


def test_finished_build_is_not_done_again(tmp_path: Path, plan_of) -> None:
    plan = plan_of([entry(number) for number in range(12)])
    said: list[str] = []
    first = build(plan, Destination(tmp_path / "out"), said=said.append)
    assert build(plan, Destination(tmp_path / "out"), said=said.append) == first
    assert said == [f"{tmp_path / 'out'} is finished already"]


def test_unfinished_build_says_that_it_goes_on(tmp_path: Path, plan_of) -> None:
    plan = plan_of([entry(number) for number in range(25)])
    build_chunks(plan, tmp_path / "out", part=(1, 2))
    said: list[str] = []
    build(plan, Destination(tmp_path / "out"), said=said.append)
    assert said == [
        f"went on with the unfinished build in {tmp_path / 'out'}: 1 chunks were there already"
    ]


def test_other_settings_are_refused(tmp_path: Path, plan_of) -> None:
    plan = plan_of([entry(number) for number in range(12)])
    build_chunks(plan, tmp_path / "out")
    with pytest.raises(
        BuildError,
        match=f"longest_side: None there, 99 now.*Give the same ones.*delete {tmp_path / 'out'} to",
    ):
        quietly(plan_of([], transform=SampleTransform(longest_side=99)), tmp_path / "out")
    merge(tmp_path / "out")
    with pytest.raises(BuildError, match="compression: 'none' there, 'zstd' now"):
        quietly(plan_of([], compression="zstd"), tmp_path / "out")
    os.utime(tmp_path / "entries.json", (1, 1))
    with pytest.raises(BuildError, match="state of the files"):
        quietly(plan, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("mine")
    with pytest.raises(BuildError, match="holds something else"):
        quietly(plan, tmp_path / "other")


def test_too_many_rejects_are_an_error_that_keeps_the_work(tmp_path: Path, plan_of) -> None:
    plan = plan_of([*(entry(number) for number in range(30)), *([None] * 5)])
    with pytest.raises(
        BuildError, match=r"5 of 35 inputs are rejects; at most 10% .*rejects\.jsonl names each"
    ):
        quietly(plan, tmp_path / "out")
    with pytest.raises(
        BuildError,
        match=r"names each, for example \(does not fit\): .*for other options delete .*out first",
    ):
        quietly(plan, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 5
    assert quietly(plan, tmp_path / "out", max_rejects=0.2).samples == 30


def test_a_wrong_folder_is_noticed_early(tmp_path: Path, plan_of) -> None:
    plan = plan_of([entry(number, image=-1) for number in range(3000)])
    with pytest.raises(
        BuildError, match=r"1,000 of the first 1,000 inputs are rejects; 1,000: image missing"
    ):
        quietly(plan, tmp_path / "out")
    with pytest.raises(BuildError, match=r"3,000 of 3,000 inputs are rejects"):
        quietly(plan, tmp_path / "out", max_rejects=1)


def test_unreadable_input_leaves_nothing(tmp_path: Path, plan_of) -> None:
    (tmp_path / "entries.json").write_text("[")
    with pytest.raises(ValueError, match="not JSON"):
        quietly(plan_of([]), tmp_path / "out")
    (tmp_path / "entries.json").write_text("[]")
    with pytest.raises(BuildError, match="there is nothing in"):
        quietly(plan_of([]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["entries.json"]


def test_held_out_share_stays_when_data_is_added(tmp_path: Path, plan_of) -> None:
    validation = []
    for count in (40, 80):
        (tmp_path / "entries.json").unlink(missing_ok=True)
        plan = plan_of([entry(number) for number in range(count)], validation=0.2)
        quietly(plan, tmp_path / f"out{count}")
        validation.append(
            {sample.id for sample in read_samples(tmp_path / f"out{count}" / "validation")}
        )
    assert validation[0] == validation[1] & {f"e{number}" for number in range(40)}


def test_object_store_receives_the_whole_data_set(
    tmp_path: Path, plan_of, object_store: ObjectStore
) -> None:
    """An upload that broke off goes on with the split that is missing; another data set is not
    overwritten.
    """
    plan = plan_of([entry(number) for number in range(40)], validation=8)
    destination = Destination.of(object_store.address("some/shards/"), str(tmp_path / "work"))
    assert destination == Destination(tmp_path / "work", object_store.address("some/shards"))
    merged = build(plan, destination, said=lambda _: None)
    upload_folder(destination.local / "validation", f"{destination.remote}/validation")
    said: list[str] = []
    upload(destination, merged, said.append)
    assert said == [f"{destination.remote}/validation is there already"]
    local = contents(destination.local)
    assert {f"some/shards/{name}" for name in local} == set(object_store.keys())
    assert all(object_store.read(f"some/shards/{name}") == data for name, data in local.items())
    upload(destination, merged, said.append)
    quietly(plan_of([], validation=7), tmp_path / "other")
    with pytest.raises(ValueError, match=r"has a index\.json already|has an index\.json already"):
        upload(Destination(tmp_path / "other", destination.remote), merged, said.append)


def test_places_are_checked() -> None:
    assert Destination.of("s3://bucket/a/b").local == Path("b")
    for out, work, said in (("s3://bucket", None, "bucket only"), ("out", "work", "local already")):
        with pytest.raises(BuildError, match=said):
            Destination.of(out, work)
    with pytest.raises(ValueError, match="s3://bucket/folder"):
        Destination.of("ftp://bucket/x")


@pytest.mark.parametrize("validation", [float("nan"), float("inf"), 0, 0.0, 1.0, -3, True])
def test_what_is_neither_a_share_nor_a_number_is_refused_before_the_work(
    plan_of, validation: float | int
) -> None:
    with pytest.raises(ValueError, match="expected a share such as 0.01 or a number such as 2000"):
        plan_of([], validation=validation)


def test_labels_that_cannot_be_stored_are_refused_before_the_work() -> None:
    for labels in ({"license": "\udcff"}, {"source": "caf\udce9"}):
        with pytest.raises(ValueError, match="is not UTF-8 text"):
            SampleTransform(**labels)


def test_repeats_agree_with_a_plain_search() -> None:
    """2,000 samples drawn from few ids and contents, against sets and lists."""
    rng = np.random.default_rng(1)
    names = [f"n{number}" for number in rng.integers(0, 900, 2000)] + ["n5#2", "n5#2"]
    contents_ = rng.integers(0, 1500, 2002).astype(np.uint64)
    ids = np.array([id_digest(name) for name in names], np.uint64)
    for same_id in ("number", "drop"):
        found = find_repeats(
            ids, contents_, lambda positions: (names[place] for place in positions), same_id
        )
        seen: dict[int, str] = {}
        taken: set[str] = set()
        for place, (name, content) in enumerate(zip(names, contents_.tolist(), strict=True)):
            if content in seen:
                assert found.dropped[place] == ("duplicate content", seen[content])
            elif same_id == "drop" and name in taken:
                assert found.dropped[place] == ("duplicate id", name)
            else:
                assert place not in found.dropped
                new = found.renamed.get(place, name)
                assert new not in taken
                assert (new == name) == (name not in taken)
                assert new.startswith(name)
                taken.add(new)
                seen[content] = new
