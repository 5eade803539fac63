"""What is asked of the first GPU: pieces of at most nine minutes, in the order of their worth.

On a CPU the same pieces run at tiny sizes, to try the machinery; what they measure there means
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MINUTES = 9
"""Of a piece, at most."""
STEPS = 20
ATTENTION_SIZES = ("288/576", "144/576", "288/2304")
VARIANTS: dict[str, tuple[str, ...]] = {
    "shipped": (),
    "checkpointing_none": ("train.activation_checkpointing=none",),
    "checkpointing_full": ("train.activation_checkpointing=full",),
    "gather_modules": ("train.zero3_gather=modules",),
    "zero2": ("deepspeed=ds_configs/zero2.json",),
    "compiled": ("train.compile=layers",),
    "compiled_zero2": ("train.compile=layers", "deepspeed=ds_configs/zero2.json"),
}
"""Name -> settings of the same twenty steps of pre-training."""
TINY_RUN = (
    "vision.name=test_vit", "vision.image_size=64", "projector.partial_tokens=8",
    "projector.global_tokens=2", "projector.layers=2", "projector.width=32", "projector.heads=4",
    "llm.architecture.hidden_size=64", "llm.architecture.intermediate_size=128",
    "llm.architecture.num_hidden_layers=2", "llm.architecture.num_attention_heads=4",
    "llm.architecture.num_key_value_heads=4", "batch.tokens_per_pack=512", "train.precision=fp32",
)  # fmt: skip
TINY_ATTENTION = (
    *("--dtype", "fp32", "--images", "1", "--heads", "2", "--head-dims", "16"),
    *("--repetitions", "3", "--seconds", "1"),
)


@dataclass(frozen=True)
class Machine:
    """Where the pieces run."""

    device: str
    """cuda or cpu."""
    ranks: int
    gpu: str | None
    """The GPU's word in tools/plan_run.py; None: it is not in its table."""
    words: str
    """For the report."""


@dataclass(frozen=True)
class Piece:
    """Commands that run one after another in the project's folder; the first that fails ends it."""

    name: str
    question: str
    commands: tuple[tuple[str, ...], ...]
    needs: str = ""
    """Another piece that has to be done before."""
    run: str = ""
    """Below the report's folder: a run whose metrics.jsonl holds the figures."""


def pieces(machine: Machine, folder: Path) -> list[Piece]:
    """All of them, most worth first; `folder` is the report's."""
    tests = [
        _tests(
            "golden",
            "losses near the CPU's golden curve",
            "test_training_cuda.py",
            "curve_of_the_cpu",
        ),
        _tests("tests_resume", "a run is continued", "test_training_cuda.py", "continues"),
        _tests("tests_packed", "packed rows of the LLM", "test_packed_attention_cuda.py"),
        _tests("tests_attention", "attention of the projector", "test_attention_cuda.py"),
        _tests("tests_roads", "flash roads train", "test_training_cuda.py", "flash_roads"),
    ]
    steps = [_steps(machine, folder, name, settings) for name, settings in VARIANTS.items()]
    attention = [_attention(machine, folder, size) for size in ATTENTION_SIZES]
    training = [_training(machine, folder, data) for data in ("demo", "mix")]
    demo = Piece("demo", "the whole path, PROCESSES=1", (("bash", "tools/demo.sh"),))
    finetune = _steps(machine, folder, "finetune", ("start_from=null",), "finetune")
    return [*tests, *_data(machine, folder), *steps, *attention, *training, finetune, demo]


def chosen(all_pieces: Sequence[Piece], names: Sequence[str]) -> list[Piece]:
    """Those of `names`, in their own order; all without names. Raises ValueError for unknown ones."""
    known = {piece.name for piece in all_pieces}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"no piece is called {', '.join(unknown)}; --list shows all names")
    return [piece for piece in all_pieces if not names or piece.name in names]


def _tests(name: str, question: str, file: str, words: str = "") -> Piece:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-s", "-q", f"tests/gpu/{file}"]
    command += ["-p", "no:cacheprovider", *(["-k", words] if words else [])]
    return Piece(name, question, (tuple(command),))


def _data(machine: Machine, folder: Path) -> list[Piece]:
    """What the pieces after it read."""
    python, train = sys.executable, "24" if machine.device == "cpu" else "400"
    shards = (python, "tools/build_shards.py", "scenes", str(folder / "shards"), "--force")
    parts = (python, "tools/prepare_demo_parts.py", "runs/parts")
    return [
        Piece("parts", "tokenizer and weights of the demo", (parts,)),
        Piece(
            "images",
            "composed scenes",
            ((*shards, "--train", train, "--validation", "4"),),
            "parts",
        ),
    ]


def _steps(
    machine: Machine, folder: Path, name: str, settings: tuple[str, ...], file: str = "pretrain"
) -> Piece:
    """Twenty steps of a shipped run file with random weights, after a plan of them."""
    sets = (
        f"name={name}", f"output={folder / 'steps'}", "llm.weights=random", "llm.name=runs/parts/llm",
        "llm.architecture.vocab_size=49152", "vision.weights=random",
        f"data.train={folder / 'shards' / 'train'}",
        f"data.validation={folder / 'shards' / 'validation'}",
        f"train.steps={STEPS}", "train.warmup_steps=2", f"batch.packs_per_step={2 * machine.ranks}",
        "validation.packs=2", f"checkpoint.every={10 * STEPS}", "reporting.log_every=1",
        "reporting.wandb=disabled", *settings,
        *(TINY_RUN if machine.device == "cpu" else ()),
    )  # fmt: skip
    words = [word for setting in sets for word in ("--set", setting)]
    run_file, run_dir = f"ds_configs/{file}.yaml", folder / "steps" / name
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
    train = (*launcher, str(machine.ranks), "-m", "pargo_ds.train", run_file, *words)
    plan = ("tools/plan_run.py", run_file, "--save", "--gpus", str(machine.ranks))
    commands = [(sys.executable, *train)]
    if machine.gpu is not None:  # a run that does not fit is refused here
        commands.insert(0, (sys.executable, *plan, "--gpu", machine.gpu, *words))
        commands.append((sys.executable, "tools/plan_run.py", "--residual", str(run_dir)))
    question = f"{STEPS} steps of {file}, random 7B: {' '.join(settings) or 'as shipped'}"
    return Piece(f"steps_{name}", question, tuple(commands), needs="images", run=f"steps/{name}")


def _attention(machine: Machine, folder: Path, size: str) -> Piece:
    name = f"attention_{size.replace('/', '_')}"
    tiny = machine.device == "cpu"
    command = (
        *(sys.executable, "tools/bench_attention.py", "--device", machine.device),
        *("--json", str(folder / f"{name}_figures.json"), "--sizes", "4/16" if tiny else size),
        *(TINY_ATTENTION if tiny else ("--seconds", "5")),
    )
    return Piece(name, f"which backend of the projector is fastest at {size}", (command,))


def _training(machine: Machine, folder: Path, data: str) -> Piece:
    command = (
        *(sys.executable, "tools/bench_training.py", "--data", data),
        *("--ranks", str(machine.ranks), "--work", str(folder / "bench_training")),
        *("--json", str(folder / f"training_{data}_figures.json")),
        *(("--quick",) if machine.device == "cpu" else ()),
    )
    return Piece(
        f"training_{data}", "our trainer beside Hugging Face's", (command,), needs="images"
    )
