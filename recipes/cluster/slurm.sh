#!/bin/bash
# Train a recipe under SLURM, on one node or several, through time limits and pre-emption; or run a sweep on one node:
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 recipes/cluster/slurm.sh \
#       mae_resenc_l data.store=/data/my.zarr run.dir=/runs/mae run.devices=4
#   sbatch recipes/cluster/slurm.sh sweep mae_grid --local 6 --out /runs/sweep
#
# One task is one GPU. SLURM sends SIGUSR1 to the tasks two minutes before the time limit, and SIGTERM when it takes the
# nodes away: training finishes its step, saves, and exits with 75; the job then puts itself back into the queue and goes
# on from there. docs/cluster.md says more.
#SBATCH --job-name=ssl3d
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch $0 RECIPE [key=value ...], or sbatch $0 sweep FILE --local N --out DIR [key=value ...]" >&2
    exit 2
fi
verb=train
if [[ $1 == sweep ]]; then
    verb=sweep
    shift
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
srun --kill-on-bad-exit=0 ssl3d "$verb" "$@"
code=$?
if [[ $code -eq 75 ]]; then
    echo "job $SLURM_JOB_ID: saved, back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
