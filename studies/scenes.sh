#!/usr/bin/env bash
# The longer distillation of the bundled teacher, which gave the bundled few-step model (studies/bundle.py), and its main table.
# Takes three quarters of an hour on two cores and goes on where it stopped:  bash studies/scenes.sh [folder]
# Figures: docs/scenes-long/results.json, docs/results.md.
set -euo pipefail
out=${1:-runs/scenes-long}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
# More pictures an update and little guidance, at which this teacher is best; more updates do not help (docs/log.md).
"$fewstep" distill scenes --out "$out" --batch-size 96 --pictures 28800 --guidance-range 1 4 --guidance-scale 2 \
    --sample-every 0 --eval-every 150 --eval-n 512
"$fewstep" evaluate --model "$out/model" --n-tuning 48 --out "$out/evaluation"
