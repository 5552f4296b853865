#!/usr/bin/env bash
# A longer distillation of the bundled teacher, scored as the demo is. Figures: none published yet.
# Takes about a quarter of an hour on two cores:  bash studies/scenes.sh [folder]
set -euo pipefail
out=${1:-runs/scenes-long}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
"$fewstep" demo --out "$out" --steps 400 --batch-size 64 --pictures 25600
