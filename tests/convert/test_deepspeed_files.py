"""Checkpoints of plain DeepSpeed engines are read bit for bit, without DeepSpeed and without
running what is in them.

Two oracles: what the engine held when it saved (deepspeed_worker.py), and DeepSpeed's own
zero_to_fp32.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import defaultdict, deque
from datetime import datetime
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from tiny import ROOT, run_command

from pargo_ds.checkpoint.fragments import WEIGHT
from pargo_ds.convert.deepspeed.files import DeepSpeedFiles
from pargo_ds.errors import CheckpointError

FAST = [
    "zero0_bf16", "zero1_fp32", "zero1_bf16_optimizer", "zero2_bf16", "zero2_bf16_trained",
    "zero3_bf16", "zero3_bf16_trained",
]  # fmt: skip
ALL = ["zero0_fp32", "zero1_bf16", "zero2_fp32", "zero3_fp32", *FAST]
FROZEN = {"frozen.weight", "frozen.bias", "frozen_scale"}
BUFFERS = {"seen", "mean"}
AGAIN = {"frozen_again.weight": "frozen.weight", "frozen_again.bias": "frozen.bias"}


def save_with(ranks: int, out: Path, cases: list[str]) -> Path:
    """`out`, with what real engines saved."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(ranks),
        "--standalone",
    ]
    process = run_command(
        [*command, str(ROOT / "tests/convert/deepspeed_worker.py"), str(out), *cases]
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folders of the FAST cases, saved by two ranks."""
    return save_with(2, tmp_path_factory.mktemp("deepspeed"), FAST)


def check_read(out: Path, case: str, ranks: int) -> None:
    """All that the checkpoint of one case holds is read as the engine held it, and as zero_to_fp32
    reads it.
    """
    files, held = DeepSpeedFiles(out / case), load_file(out / f"{case}.safetensors")
    assert (files.zero_stage, files.world_size, files.step) == (int(case[4]), ranks, 2)
    others = BUFFERS | (set() if case.startswith("zero0") or case.endswith("trained") else FROZEN)
    trained = set(held) - BUFFERS - (set() if case.startswith("zero0") else FROZEN)
    assert set(files.names()) == set(files.shapes) == trained
    assert files.knows_trained == (not case.startswith("zero0"))
    # DeepSpeed leaves second names of excluded parameters in the file.
    assert others <= set(files.other_tensors) <= others | set(AGAIN)
    assert files.shared["head.weight"] == "embed.weight"
    read = {name: files.whole(WEIGHT, name) for name in files.names()}
    for name in files.names():
        pieces = list(files.pieces(WEIGHT, name, 7))
        assert max(piece.numel() for piece in pieces) <= 7
        assert torch.equal(torch.cat(pieces), read[name].reshape(-1))
    read |= {name: files.read_other(name) for name in files.other_tensors}
    for name, tensor in read.items():
        true = held[AGAIN.get(name, name)]
        assert tensor.dtype == (torch.float32 if name in trained else true.dtype), name
        assert torch.equal(tensor, true.to(tensor.dtype)), name
        assert list(tensor.shape) == (
            files.shapes.get(name) or list(files.other_tensors[name].shape)
        ), name
    if (
        not case.startswith("zero0") and case != "zero1_bf16_optimizer"
    ):  # these two zero_to_fp32 refuses
        check_as_zero_to_fp32(out / case, read)


def check_as_zero_to_fp32(folder: Path, read: dict[str, torch.Tensor]) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    theirs = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    for name, tensor in theirs.items():
        if name != "head.weight":
            assert torch.equal(read[name].to(tensor.dtype), tensor), name


@pytest.mark.parametrize("case", FAST)
def test_two_ranks_are_read_bit_for_bit(saved, case):
    check_read(saved, case, ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_stage_and_precision_is_read_bit_for_bit(tmp_path, ranks):
    out = save_with(ranks, tmp_path, ALL)
    for case in ALL:
        check_read(out, case, ranks)


def test_a_tag_is_found_by_name_by_latest_and_as_a_folder(saved):
    root = saved / "zero3_bf16"
    assert DeepSpeedFiles(root, "global_step1").step == 1
    assert DeepSpeedFiles(root / "global_step1").step == 1
    assert DeepSpeedFiles(root).where.name == "global_step2"
    first, second = (
        DeepSpeedFiles(root, f"global_step{step}").whole(WEIGHT, "embed.weight") for step in (1, 2)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize("tag", ["global_step3", "../zero2_bf16/global_step2"])
def test_an_absent_tag_is_refused_with_those_that_there_are(saved, tag):
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of the tag .*global_step1, global_step2"
    ):
        DeepSpeedFiles(saved / "zero3_bf16", tag)


@pytest.fixture
def damage(saved, tmp_path):
    """damage(case) is the copy of one tag's folder, to be damaged."""
    return lambda case: Path(shutil.copytree(saved / case / "global_step2", tmp_path / case))


def test_without_latest_the_tags_are_listed(damage, tmp_path):
    damage("zero2_bf16")
    with pytest.raises(CheckpointError, match=r"neither a file 'latest' .*tags: zero2_bf16\)"):
        DeepSpeedFiles(tmp_path)


@pytest.mark.parametrize("case", ["zero1_fp32", "zero2_bf16", "zero3_bf16"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_file_of_a_rank_is_missed(damage, case, rank):
    folder = damage(case)
    (path,) = folder.glob(f"*zero_pp_rank_{rank}_*_optim_states.pt")
    path.unlink()
    with pytest.raises(
        CheckpointError, match=rf"ranks.* missing: {rank}$|files of ranks {rank} are missing"
    ):
        DeepSpeedFiles(folder)


def test_a_missing_model_file_is_missed(damage):
    folder = damage("zero3_bf16")
    (folder / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="the model files of ranks 1 are missing"):
        DeepSpeedFiles(folder)
    folder = damage("zero2_bf16")
    (folder / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="mp_rank_00_model_states.pt .* is missing"):
        DeepSpeedFiles(folder)


def test_the_file_of_another_step_is_named(damage, saved):
    for case, name in (
        ("zero1_bf16_optimizer", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("zero3_bf16", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
        ("zero3_bf16_trained", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    ):
        folder = damage(case)
        shutil.copy(saved / case / "global_step1" / name, folder / name)
        with pytest.raises(
            CheckpointError, match=f"{name}: (global_steps|optimizer step) 1.*, but 2.*two saves"
        ):
            DeepSpeedFiles(folder)


def test_files_of_two_ranks_exchanged_are_noticed(damage):
    folder = damage("zero2_bf16")
    first, second = sorted(folder.glob("*_optim_states.pt"))
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    with pytest.raises(CheckpointError, match="rank_0.*another rank's|hold .* elements"):
        DeepSpeedFiles(folder)


def test_a_file_left_over_from_more_ranks_is_named(damage):
    folder = damage("zero3_bf16")
    shutil.copy(
        *(folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (1, 2))
    )
    with pytest.raises(CheckpointError, match="written by 2 ranks.*files of 3.*rank_2"):
        DeepSpeedFiles(folder)


@pytest.mark.parametrize("case", ["zero0_bf16", "zero2_bf16", "zero3_bf16"])
def test_a_truncated_file_is_named(damage, case):
    folder = damage(case)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(CheckpointError, match=f"{path.name} cannot be read"):
            DeepSpeedFiles(folder)
        path.write_bytes(whole)


def test_a_flipped_bit_in_a_weight_is_noticed(damage, saved):
    folder = damage("zero2_bf16")
    path = folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    values = (
        load_file(saved / "zero2_bf16.safetensors")["embed.weight"].flatten()[:32].numpy().tobytes()
    )
    whole = bytearray(path.read_bytes())
    whole[whole.index(values)] ^= 4
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=f"{path.name}: data/[0-9]+ was altered"):
        DeepSpeedFiles(folder).whole(WEIGHT, "embed.weight")


def test_a_flipped_bit_in_the_description_is_noticed(damage):
    folder = damage("zero3_bf16")
    path = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"embed.weight")] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=f"{path.name}: data.pkl was altered"):
        DeepSpeedFiles(folder)


def rewrite(path: Path, change) -> None:
    """Change what a file holds, as a user's own script would."""
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize("case", ["zero2_bf16", "zero3_bf16"])
def test_shapes_that_do_not_add_up_are_refused(damage, case):
    folder = damage(case)
    for path in folder.glob("*model_states.pt"):
        rewrite(
            path,
            lambda content: content["param_shapes"][1].update(
                {"embed.weight": torch.Size([13, 7])}
            ),
        )
    with pytest.raises(CheckpointError, match=r"optim_states.*embed.weight|altered"):
        DeepSpeedFiles(folder)


class Trap:
    """Unpickled, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize(
    "name", ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"]
)
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(damage, tmp_path, name):
    folder, witness = damage("zero2_bf16"), tmp_path / "witness"
    rewrite(folder / name, lambda content: content.update(trap=Trap(f"touch {witness}")))
    with pytest.raises(CheckpointError, match=rf"{name} refers to posix.system"):
        DeepSpeedFiles(folder)
    assert not witness.exists()
    torch.load(folder / name, weights_only=False)
    assert witness.exists()


def test_what_users_keep_in_client_state_does_not_hinder(damage, saved):
    folder = damage("zero2_bf16")
    state = {
        "args": argparse.Namespace(lr=1e-3),
        "random": numpy.random.RandomState(0).get_state(),
        "set": {1, 2},
    }
    state |= {
        "losses": deque([3.0, 2.0], maxlen=5),
        "seen": defaultdict(list, train=[1]),
        "when": datetime.now(),
    }
    rewrite(folder / "mp_rank_00_model_states.pt", lambda content: content.update(state))
    held = load_file(saved / "zero2_bf16.safetensors")
    files = DeepSpeedFiles(folder)
    assert torch.equal(files.whole(WEIGHT, "gate"), held["gate"])
    assert torch.equal(files.read_other("frozen.weight"), held["frozen.weight"])


@pytest.mark.parametrize(
    "name, reason",
    [
        ("mp_rank_01_model_states.pt", "tensor parallelism"),
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor parallelism"),
        ("layer_3_expert_0_mp_rank_00_model_states.pt", "experts"),
        ("layer_03-model_00-model_states.pt", "pipeline"),
    ],
)
def test_other_kinds_of_parallelism_are_refused_by_name(damage, name, reason):
    folder = damage("zero2_bf16")
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / name)
    with pytest.raises(CheckpointError, match=f"{reason}.*{name}"):
        DeepSpeedFiles(folder)


def test_a_universal_checkpoint_is_refused(damage):
    folder = damage("zero3_bf16")
    (folder / "zero" / "embed.weight").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="universal checkpoint.*that it was made from"):
        DeepSpeedFiles(folder)


def test_what_is_not_there_is_not_read(saved):
    files = DeepSpeedFiles(saved / "zero3_bf16")
    with pytest.raises(
        CheckpointError, match=r"no trained parameter head.weight; it is tied to embed.weight"
    ):
        files.whole(WEIGHT, "head.weight")
    with pytest.raises(CheckpointError, match="exp_avg of embed.weight is not read"):
        files.whole("exp_avg", "embed.weight")
    with pytest.raises(CheckpointError, match="no frozen parameter or buffer scratch"):
        files.read_other("scratch")


READ = """
import sys
sys.modules["deepspeed"] = None  # importing it fails
from pathlib import Path
from pargo_ds.convert.deepspeed.files import DeepSpeedFiles

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024

files = DeepSpeedFiles(Path(sys.argv[1]))
before, most, elements = anonymous(), 0, 0
for name in files.names():
    tensor = files.whole("fp32", name)
    most, elements = max(most, anonymous()), elements + tensor.numel()
    del tensor
print(elements, most - before)
"""


def test_deepspeed_is_not_needed(saved):
    process = run_command([sys.executable, "-c", READ, str(saved / "zero3_bf16")])
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[0] == "173"


@pytest.mark.slow
def test_memory_is_that_of_one_tensor(tmp_path):
    folder = save_with(2, tmp_path, ["large"]) / "large"
    size = sum(path.stat().st_size for path in folder.rglob("*.pt")) / 2**20
    process = run_command([sys.executable, "-c", READ, str(folder)])
    assert process.returncode == 0, process.stderr
    grown = float(process.stdout.split()[1])
    # Measured 34.35 MiB with ZeRO 1, 2 and 3: the one tensor of 34.33 MiB that is held.
    assert size > 400
    assert grown < 1.5 * 34.33
