#!/usr/bin/env bash
# The longer distillation of the bundled teacher, which gave the bundled few-step model (studies/bundle.py), and its main table.
# Takes three quarters of an hour on two cores and goes on where it stopped:  bash studies/scenes.sh [folder]
# Figures: docs/scenes-long/results.json, docs/results.md.
set -euo pipefail
out=${1:-runs/scenes-long}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
# Little guidance, at which this teacher is best: the longer the training, the nearer the student is to what its guided ODE says.
"$fewstep" distill scenes --out "$out" --guidance-range 1 2 --guidance-scale 1.5 --guided-from 0 --steps 800 --pictures 25600 \
    --sample-every 0 --eval-every 200 --eval-n 512
"$fewstep" evaluate --model "$out/model" --out "$out/evaluation"
