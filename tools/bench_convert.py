#!/usr/bin/env python3
"""Convert a ZeRO-3 checkpoint to fp32 safetensors, beside DeepSpeed's zero_to_fp32.py: memory, time, the same numbers.

For every size a random LLM is trained for one step in bf16 by two processes; the same engine then saves as this package
does and as DeepSpeed does (save_checkpoint). Each conversion runs in a process of its own, in turns; the medians count.
Ours compares all files and the frozen weights with their hashes, flushes to the disk and hashes what it wrote;
zero_to_fp32.py does none of these. Checkpoints stay in WORK and are taken again by the next call.

examples:
  python tools/bench_convert.py --work /scratch/bench --millions 150 300 600 --json convert.json
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from pargo_ds.files.figures_json import figures_json

ROOT = Path(__file__).resolve().parents[1]
WIDTH, VOCABULARY, PER_LAYER = 1024, 16384, 16.8e6
"""Larger models have more layers, so the largest tensor is always the embedding with 16.8 million
weights.
"""
BYTES_PER_WEIGHT = 34
"""Bytes on the disk: both checkpoints (12 and 14), the LLM (2), one output (4), and a reserve."""
MEMORY_PER_WEIGHT = 30
"""Bytes of memory while the checkpoints are made: weights, optimizer states, and the copy of them
that is written.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for LLMs, checkpoints and outputs")
    add(
        "--millions",
        type=float,
        nargs="+",
        default=[150, 300, 600],
        metavar="M",
        help="weights of the LLM",
    )
    add(
        "--turns",
        type=int,
        default=3,
        metavar="N",
        help="conversions of each kind; the medians count (default 3)",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add(
        "--make", type=Path, metavar="FOLDER", help=argparse.SUPPRESS
    )  # what the two training processes are told
    return parser.parse_args(arguments)


# Checkpoints


def prepare(folder: Path, millions: float) -> None:
    """Make LLM, vision weights, run file and both checkpoints of one size, unless they exist.

    Raises ValueError when memory or disk are too small.
    """
    if (folder / "DONE").exists():
        return
    check_room(folder.parent, millions)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_parts(folder, millions)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
    ]
    subprocess.run(
        [*command, "--work", str(folder.parent), "--make", str(folder)],
        check=True,
        env=environment(),
    )
    (folder / "DONE").touch()


def check_room(work: Path, millions: float) -> None:
    """Raise ValueError when disk or memory is too small for models of so many million weights."""
    free = shutil.disk_usage(work).free
    with open("/proc/meminfo") as file:
        available = next(line for line in file if line.startswith("MemAvailable"))
    memory = int(available.split()[1]) * 1024
    for what, found, needed in (
        ("disk", free, BYTES_PER_WEIGHT),
        ("memory", memory, MEMORY_PER_WEIGHT),
    ):
        if found < millions * 1e6 * needed:
            raise ValueError(
                f"{millions:.0f} million weights need {millions * needed / 1e3:.0f} GB of {what}, "
                f"{found / 1e9:.0f} GB are free"
            )


def write_parts(folder: Path, millions: float) -> None:
    """Write the inputs of a run: a random LLM as on the hub, the file of a vision encoder, and the
    run file.
    """
    import timm
    import torch
    import yaml
    from safetensors.torch import save_file
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    layers = max(1, round((millions * 1e6 - 2 * VOCABULARY * WIDTH) / PER_LAYER))
    config = AutoConfig.for_model(
        "llama", hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=layers, num_attention_heads=16,
        vocab_size=VOCABULARY, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "llm")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["An image."], vocab_size=300, special_tokens=["<|end|>"])
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|end|>' }}{% endfor %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        chat_template=template,
    ).save_pretrained(folder / "llm")
    save_file(
        timm.create_model("test_vit", img_size=64).state_dict(), folder / "vision.safetensors"
    )
    run = {
        "name": "bench",
        "output": str(folder),
        "deepspeed": str(ROOT / "ds_configs/zero3.json"),
        "vision": {
            "library": "timm", "name": "test_vit", "weights": str(folder / "vision.safetensors"), "image_size": 64,
        },
        "projector": {"partial_tokens": 8, "global_tokens": 2, "layers": 2, "width": 64, "heads": 4},
        "llm": {"name": str(folder / "llm")},
        "train": {"projector": {"mode": "full", "lr": 1e-4}, "llm": {"mode": "full", "lr": 1e-4}, "steps": 1},
        "batch": {"tokens_per_pack": 64, "images_per_pack": 1, "packs_per_step": 2},
        "data": {"train": "none", "text": "turns"},
        "checkpoint": {"background": False},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(run))


def make(folder: Path) -> None:
    """Train one step and write both kinds of checkpoint; two processes call this."""
    import torch

    from pargo_ds import assembly, distributed
    from pargo_ds.assembly.freezing import apply_freezing
    from pargo_ds.checkpoint.frozen import frozen_hashes
    from pargo_ds.checkpoint.saver import RunMetadata, Saver
    from pargo_ds.config import load_config
    from pargo_ds.training.engine import build_engine, deepspeed_settings, start_distributed

    run = load_config(folder / "run.yaml")
    settings = deepspeed_settings(run, distributed.world_size())
    start_distributed()
    model = assembly.build_model(run, assembly.build_processor(run), settings)
    apply_freezing(model, run.train)
    fingerprint = assembly.model_fingerprint(model)
    engine = build_engine(model, run, settings)
    facts = RunMetadata(
        model_fingerprint=fingerprint,
        zero_stage=3,
        config=run.model_dump(mode="json"),
        model_config=assembly.model_description(engine.module),
        frozen_sources=assembly.frozen_sources(run),
        frozen=frozen_hashes(engine.module),
    )
    saver = Saver(run.run_dir / "checkpoints", facts, keep=1, background=False)
    words = torch.arange(16).unsqueeze(0)
    pixels = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
    engine.backward(
        engine(input_ids=words, labels=words, pixel_values=pixels, return_logits=False).loss
    )
    engine.step()
    saver.save(engine, step=1, data_state={}, totals={})
    saver.wait()
    engine.save_checkpoint(str(folder / "deepspeed"))
    distributed.barrier()
    distributed.close_process_group()


# Conversions


def environment() -> dict[str, str]:
    """Return the environment of the conversions: on the CPU, with this package."""
    return {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }


def contenders(folder: Path) -> dict[str, list[str]]:
    """Return the command of each contender; the folder to write is its last argument."""
    ours = [
        sys.executable,
        str(ROOT / "tools/convert_checkpoint.py"),
        "zero-to-hf",
        "--dtype",
        "fp32",
        "--file-size",
        "1",
    ]
    theirs = [
        sys.executable,
        "-m",
        "deepspeed.utils.zero_to_fp32",
        "--safe_serialization",
        "--max_shard_size",
        "1GB",
    ]
    return {
        "zero_to_fp32.py, DeepSpeed's": [*theirs, str(folder / "deepspeed")],
        "zero-to-hf, DeepSpeed's": [
            *ours,
            "--run",
            str(folder / "run.yaml"),
            str(folder / "deepspeed"),
        ],
        "zero-to-hf, ours": [*ours, str(folder / "bench")],
    }


def measure(command: list[str], out: Path, log: Path) -> dict[str, float]:
    """Run a command that writes `out`, and measure it: the peaks of its anonymous and of its
    resident memory (MB), seconds, seconds until `out` is on the disk, and seconds of CPU.
    """
    peaks = {"RssAnon": 0.0, "VmHWM": 0.0}
    os.sync()
    started = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, str(out)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=ROOT,
        )
    watcher = threading.Thread(target=watch, args=(process.pid, peaks))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    watcher.join()
    for path in out.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    on_disk = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(
            f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-2000:]}"
        )
    return {"anonymous": peaks["RssAnon"], "resident": peaks["VmHWM"], "wall": seconds, "on_disk": on_disk,
            "cpu": usage.ru_utime + usage.ru_stime}  # fmt: skip


def watch(pid: int, peaks: dict[str, float]) -> None:
    """Sample /proc/PID/status every 20 ms until the process is gone."""
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        if not set(peaks) & set(found):  # it has ended, but its parent has not waited for it yet
            return
        for key in set(peaks) & set(found):
            peaks[key] = max(peaks[key], int(found[key].split()[0]) * 1024 / 1e6)
        time.sleep(0.02)


def tensors_in(folder: Path) -> dict[str, Path]:
    """Return the safetensors file of each tensor."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        keys = safe_open(path, "pt").keys()
        found |= dict.fromkeys(keys, path)
    return found


def check_same(one: Path, other: Path) -> int:
    """Return the number of tensors. Raises ValueError when one of them differs."""
    import torch
    from safetensors import safe_open

    first, second = tensors_in(one), tensors_in(other)
    if first.keys() != second.keys():
        raise ValueError(
            f"{one} and {other} hold other tensors: {sorted(first.keys() ^ second.keys())[:8]}"
        )
    for key in first:
        a, b = (safe_open(files[key], "pt").get_tensor(key) for files in (first, second))
        if a.dtype != b.dtype or not torch.equal(a, b):
            raise ValueError(f"{key} differs between {one} and {other} ({a.dtype}, {b.dtype})")
    return len(first)


def compare(folder: Path, millions: float, turns: int) -> list[dict[str, Any]]:
    """Return the medians of every contender for one size."""
    commands = contenders(folder)
    outs = {name: folder / f"out_{number}" for number, name in enumerate(commands)}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for turn in range(turns):
        for name, command in commands.items():
            shutil.rmtree(outs[name], ignore_errors=True)
            figures[name].append(measure(command, outs[name], folder / "log.txt"))
            print(
                f"  {millions:.0f} M, turn {turn + 1}: {name}: {figures[name][-1]['wall']:.1f} s",
                file=sys.stderr,
            )
            if turn == 0 and name != next(iter(commands)):
                check_same(outs[next(iter(commands))], outs[name])
            if name != next(iter(commands)) or turn:
                shutil.rmtree(outs[name])
    rows: list[dict[str, Any]] = []
    for name, runs in figures.items():
        row: dict[str, Any] = {"millions": millions, "what": name}
        for key in runs[0]:
            row[key] = median(one[key] for one in runs)
        rows.append(row)
    for row in rows:
        for key in ("anonymous", "wall", "on_disk", "cpu"):
            row[f"{key}_ratio"] = row[key] / rows[0][key]
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with ratios to zero_to_fp32.py."""
    lines = [
        "| LLM | converter, checkpoint | RssAnon MB | ratio | VmHWM MB | wall s | ratio | on disk s | ratio | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['millions']:.0f} M | {row['what']} | {row['anonymous']:,.0f} | {row['anonymous_ratio']:.2f} | "
            f"{row['resident']:,.0f} | {row['wall']:.1f} | {row['wall_ratio']:.2f} | "
            f"{row['on_disk']:.1f} | {row['on_disk_ratio']:.2f} | {row['cpu']:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = parse_arguments(arguments)
    if options.make:
        make(options.make)
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        for millions in options.millions:
            folder = options.work.resolve() / f"{millions:.0f}M"
            prepare(folder, millions)
            rows += compare(folder, millions, options.turns)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"bench_convert: error: {error}", file=sys.stderr)
        return 2
    print(report(rows))
    if options.json:
        options.json.write_text(figures_json(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
