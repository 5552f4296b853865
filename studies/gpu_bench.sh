#!/usr/bin/env bash
# The figures that need a GPU, in the order of their worth, each step with its own time limit and its own file of JSON;
# what they are is in studies/gpu_steps.py. Ten minutes on a card of 80 GB; nothing is fetched:
#     bash studies/gpu_bench.sh                  # writes docs/speed/gpu/
#     bash studies/gpu_bench.sh --rehearse       # every line of it on a CPU, with miniatures, in half a minute
#     bash studies/gpu_bench.sh --only train-sd15 paint-1 --minutes 5
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
command -v "$python" >/dev/null || python=python
PYTHONPATH="$here/src${PYTHONPATH:+:$PYTHONPATH}" exec "$python" "$here/studies/gpu_bench.py" "$@"
