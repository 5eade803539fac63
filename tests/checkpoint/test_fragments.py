"""Fragments of any cut read back as the whole, and files that do not fit are refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pargo_ds.checkpoint.fragments import WEIGHT, Fragment, FragmentFiles, as_tensors, fragment_file
from pargo_ds.errors import CheckpointError

SHAPES = {"a.weight": [3, 5], "b.bias": [1], "c.weight": [2, 4, 3]}


def whole() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def write(folder: Path, tensors: dict[str, torch.Tensor], ranks: int, seed: int) -> None:
    """Cut every tensor at random places and deal the pieces out over `ranks` files."""
    drawn = random.Random(seed)
    files: list[list[Fragment]] = [[] for _ in range(ranks)]
    for name, tensor in tensors.items():
        flat = tensor.flatten()
        cuts = sorted({0, flat.numel(), *(drawn.randrange(flat.numel() + 1) for _ in range(3))})
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            kinds = {WEIGHT: flat[start:stop].clone(), "exp_avg": -flat[start:stop]}
            files[drawn.randrange(ranks)].append(Fragment(name=name, start=start, kinds=kinds))
    for rank, fragments in enumerate(files):
        if fragments:
            path = folder / fragment_file(rank)
            path.parent.mkdir(exist_ok=True)
            save_file(as_tensors(fragments), path)


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_reads_back_whole_and_in_any_other_cut(tmp_path, seed):
    tensors = whole()
    write(tmp_path, tensors, ranks=1 + seed % 4, seed=seed)
    files = FragmentFiles(tmp_path, SHAPES)
    assert files.names() == sorted(SHAPES)
    drawn = random.Random(1000 + seed)
    for name, tensor in tensors.items():
        assert torch.equal(files.whole(WEIGHT, name), tensor)
        assert torch.equal(files.whole("exp_avg", name), -tensor)
        start = drawn.randrange(tensor.numel())
        stop = drawn.randrange(start, tensor.numel() + 1)
        assert torch.equal(files.read(WEIGHT, name, start, stop), tensor.flatten()[start:stop])


def rewrite(folder: Path, change) -> None:
    from safetensors.torch import load_file

    path = next((folder / "fragments").iterdir())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut_short(tensors):
    tensors["fp32/0/a.weight"] = tensors["fp32/0/a.weight"][:-1].clone()


def leave_a_gap(tensors):
    tensors["fp32/2/a.weight"] = tensors.pop("fp32/0/a.weight")


def overlap(tensors):
    tensors["fp32/3/a.weight"] = tensors["fp32/0/a.weight"].clone()


def add_a_stranger(tensors):
    tensors["fp32/0/z.weight"] = torch.zeros(3)


def spoil_a_key(tensors):
    tensors["fp32/minus one/a.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    "change, said",
    [
        (cut_short, "fp32 of a.weight has 14 elements, its shape [3, 5] needs 15"),
        (leave_a_gap, "fp32 of a.weight from element 2 leaves a gap from 0 on"),
        (overlap, "overlaps what comes before it"),
        (add_a_stranger, "holds z.weight, which the manifest does not name"),
        (spoil_a_key, "unknown key 'fp32/minus one/a.weight'"),
    ],
)
def test_fragments_that_do_not_fit_are_refused_by_name(tmp_path, change, said):
    fragments = [
        Fragment(name=name, start=0, kinds={WEIGHT: t.flatten()}) for name, t in whole().items()
    ]
    (tmp_path / "fragments").mkdir()
    save_file(as_tensors(fragments), tmp_path / fragment_file(0))
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        FragmentFiles(tmp_path, SHAPES)
    assert said in str(caught.value)


def test_a_cut_file_and_a_missing_kind_are_named(tmp_path):
    write(tmp_path, whole(), ranks=1, seed=0)
    with pytest.raises(CheckpointError, match="exp_avg_sq of b.bias is missing"):
        FragmentFiles(tmp_path, SHAPES).read("exp_avg_sq", "b.bias")
    path = tmp_path / fragment_file(0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="rank_00000.safetensors cannot be read"):
        FragmentFiles(tmp_path, SHAPES)
    with pytest.raises(CheckpointError, match="the checkpoint is not whole"):
        FragmentFiles(tmp_path / "elsewhere", SHAPES)
