#!/usr/bin/env bash
# A longer distillation of the bundled teacher, scored on 512 fresh prompts; figures in docs/scenes-long/scores.json.
# Takes about LONG_MINUTES minutes on two cores:  bash studies/scenes.sh [folder]
set -euo pipefail
out=${1:-runs/scenes-long}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
"$fewstep" demo --out "$out" --steps 2400 --pictures 40000 --checkpoint-every 400 --n 512 --n-unseen 128
