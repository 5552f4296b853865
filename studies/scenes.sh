#!/usr/bin/env bash
# A longer distillation of the bundled teacher, scored as the demo is. Figures (docs/scenes-long/scores.json, docs/results.md;
# in runs/scenes-long/evaluation/results.json):
# LCM 96.5, 96.5, 93.0, 85.9 % at 1, 2, 4, 8 steps; teacher 90.6 % at 50.
# Takes about a quarter of an hour on two cores:  bash studies/scenes.sh [folder]
set -euo pipefail
out=${1:-runs/scenes-long}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
"$fewstep" demo --out "$out" --steps 400 --batch-size 64 --pictures 25600
