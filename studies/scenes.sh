#!/usr/bin/env bash
# The distillation that gave the bundled few-step model (studies/bundle.py), evaluated along the way.
# Takes four minutes on one core and goes on where it stopped:  bash studies/scenes.sh [folder [more options]]
# Figures: docs/studies/main-best.json (studies/main_table.sh), docs/results.md; along the way: docs/log.md.
set -euo pipefail
out=${1:-runs/scenes-long}
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
# More pictures an update, little guidance, at which this teacher is best, and a gap that shrinks at first, with which one
# step is learnt before more steps decay; more updates do not help (docs/log.md).
"$fewstep" distill scenes --out "$out" --batch-size 96 --steps 120 --pictures 11520 --shrink 0.5 \
    --guidance-range 1 4 --guidance-scale 2 --sample-every 0 --eval-every 60 --eval-n 512 "${@:2}"
