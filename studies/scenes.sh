#!/usr/bin/env bash
# The longer distillation of the bundled teacher, which gave the bundled few-step model (studies/bundle.py), and its main table.
# Takes three quarters of an hour on two cores and goes on where it stopped:  bash studies/scenes.sh [folder]
# Figures: docs/scenes-long/results.json, docs/results.md.
set -euo pipefail
out=${1:-runs/scenes-long}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
"$fewstep" distill scenes --out "$out" --steps 1200 --pictures 38400 --sample-every 0 --eval-every 200 --eval-n 512
"$fewstep" evaluate --model "$out/model" --out "$out/evaluation"
