#!/usr/bin/env bash
# The whole path on one machine (`make demo` calls it): parts -> shards -> stage 1 -> export -> stage 2 -> export -> report.
# PYTHON names the interpreter, PROCESSES the number of training processes (default: all GPUs, or 2 without one), SEED that
# of the new projector and of the order of the data (default 0).
# Each step leaves its result in runs/ and is skipped when that is there; delete runs/demo* to start over.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:?set PYTHON to an interpreter that has the packages; make demo does}
started=$SECONDS

say() { printf '\n[demo %4d s] %s\n' "$((SECONDS - started))" "$*"; }

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -eq 0 ]; then
    export DS_ACCELERATOR=cpu
fi
processes=${PROCESSES:-}
processes=${processes:-$((gpus > 0 ? gpus : 2))}
settings=(--set "seed=${SEED:-0}")
slow=$([ "$gpus" -gt 0 ] || "$python" -c 'from pargo_ds.slow_bf16 import slow_bf16; print(slow_bf16("cpu") or "")')
if [ -n "$slow" ]; then
    echo "$slow: the demo computes in float32"
    settings+=(--set train.precision=fp32)
fi
# The demo's step is two packs; other numbers of processes take one each.
[ $((2 % processes)) -eq 0 ] || settings+=(--set "batch.packs_per_step=$processes")

train() { # RUN.yaml NAME
    local port places=(--num_gpus "$processes")
    if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        # With --num_gpus the launcher would take the machine's first GPUs instead of these.
        places=(--include "localhost:$(cut -d, -f "1-$processes" <<<"$CUDA_VISIBLE_DEVICES")")
    fi
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    # With DONE written all is saved: gloo may still abort at exit, rarely, which is no fault of the run.
    "$python" -m deepspeed.launcher.runner "${places[@]}" --master_port "$port" --module pargo_ds.train "$1" "${settings[@]}" \
        || [ -f "runs/$2/DONE" ] || { echo "error: training stopped; see runs/$2/logs. The same command continues." >&2; exit 1; }
}

export_model() { # NAME [OPTIONS]
    local name=$1
    shift
    [ -d "runs/$name/export" ] || "$python" tools/convert_checkpoint.py zero-to-hf "runs/$name" "runs/$name/export" "$@"
}

say "pretrained parts: SmolLM2-135M-Instruct and EfficientNet-Lite0"
"$python" tools/prepare_demo_parts.py runs/parts

say "images, captions and questions: composed scenes of OpenMoji images"
[ -f runs/demo/shards/split.json ] || "$python" tools/build_shards.py scenes runs/demo/shards --concepts 24

say "stage 1: captions, projector only, ZeRO-3, $processes processes"
train ds_configs/demo_pretrain.yaml demo_pretrain
export_model demo_pretrain

say "stage 2: questions, projector and LoRA, ZeRO-3, $processes processes"
train ds_configs/demo_finetune.yaml demo_finetune
export_model demo_finetune --merge-lora

say "a new process loads the export, answers questions about held-out scenes and writes the report"
# The only process now, so it takes as many threads as there were processes (76 s instead of 119 s on two cores).
OMP_NUM_THREADS=$processes "$python" tools/demo_report.py runs/demo_finetune/export runs/demo/shards runs/demo \
    --metrics runs/demo_pretrain/metrics.jsonl runs/demo_finetune/metrics.jsonl --caption-model runs/demo_pretrain/export

say "done. Open runs/demo/report.html, or ask something yourself:"
image=runs/demo/scene.png
echo "  $python tools/answer.py runs/demo_finetune/export $image 'What is the large object?'"
echo "To train again: rm -r runs/demo runs/demo_pretrain runs/demo_finetune"
