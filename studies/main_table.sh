#!/usr/bin/env bash
# The main table: the bundled few-step model against every baseline, 5,000 pictures a row, each at its best guidance and spacing
# and all at the paper's (ω = 7.5).
# Takes about four hours on two cores and goes on where it stopped:  bash studies/main_table.sh
# Figures: docs/studies/main-best.json, docs/studies/main-paper.json, docs/results.md.
set -euo pipefail
fewstep=.venv/bin/fewstep
command -v "$fewstep" >/dev/null || fewstep=fewstep
out=runs/studies/main
"$fewstep" evaluate --n 5000 --out "$out"
cp "$out/results.json" docs/studies/main-best.json
"$fewstep" evaluate --n 5000 --guidance-scale 8.5 --out "$out"
cp "$out/results.json" docs/studies/main-paper.json
