#!/usr/bin/env bash
# The figures of docs/speed.md that need a GPU: full-size models with random weights, each beside its plain arrangement.
# Under ten minutes on a card of 80 GB; nothing is fetched:  bash studies/gpu_bench.sh [folder]
set -euo pipefail
out=${1:-docs/speed/gpu}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
mkdir -p "$out"
train() { timeout 150 "$fewstep" bench train --compare --rounds 5 --device cuda "$@"; }
train --recipe sd15 --batch-size 16 --accumulation 1 --gradient-checkpointing False --json "$out/train-sd15.json"
train --recipe sd15-lora --batch-size 16 --accumulation 1 --gradient-checkpointing False --json "$out/train-sd15-lora.json"
train --recipe sdxl-lora --batch-size 4 --accumulation 1 --json "$out/train-sdxl-lora.json"
for batch in 1 16; do
    timeout 100 "$fewstep" bench generate --model sd15 --compare --batch-size "$batch" --device cuda --json "$out/generate-sd15-$batch.json"
done
