#!/usr/bin/env bash
# A training on several machines of a SLURM cluster:  sbatch deploy/slurm.sh sd15 --teacher PATH --data DATA --out RUN
# RUN and DATA must lie where all machines see them. All arguments are those of `fewstep distill`.
#SBATCH --job-name=fewstep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
# A machine that goes ends the job; it is put into the queue again, and goes on from its last checkpoint.
#SBATCH --requeue
# Five minutes before the time is up the run is asked to stop: it ends its update and saves.
#SBATCH --signal=TERM@300
set -euo pipefail

# sed reads to the end; `head` would leave scontrol with a broken pipe.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 10000))
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

# A process that fails ends all others, and torchrun starts them again, three times at most.
srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$port" \
  --module fewstep distill "$@"
