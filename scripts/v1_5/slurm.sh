#!/usr/bin/env bash
# Train on several machines under Slurm: one task on each, which starts a process for each of its GPUs.
#
# Usage: sbatch [OPTION...] scripts/v1_5/slurm.sh SCRIPT [FLAG...]
#   e.g. sbatch --nodes 4 --partition gpu scripts/v1_5/slurm.sh scripts/v1_5/finetune_lora_dataengine.sh --max_steps 200
# Options given to sbatch win over those below. SCRIPT is a training script, FLAGs are its own; its settings (see
# _train.sh) are taken from the environment that sbatch is called in. NNODES, NODE_RANK and MASTER_ADDR are set here.
# Before its time limit Slurm sends SIGUSR1, and if one machine's task fails it ends those of the others.
# Writes: what SCRIPT writes, and slurm-JOB.out where sbatch was called.
#SBATCH --job-name=llava
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=USR1@300
set -euo pipefail
# Not in a file of its own: Slurm runs a copy of this script in another folder.
die() {
    echo "error: slurm.sh: $*; usage: sbatch [OPTION...] scripts/v1_5/slurm.sh SCRIPT [FLAG...]" >&2
    exit 2
}
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n -e 1d -e '/^#/!q' -e '/^#SBATCH/d' -e 's/^# \{0,1\}//p' "$0"
    exit 0
fi
[[ -f ${1:-} ]] || die "${1:-no SCRIPT is named}${1:+: no such script}"
[[ -n ${SLURM_JOB_NODELIST:-} ]] || die "is not in a Slurm job"

HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${HOSTS%%$'\n'*}  # the first line; `| head` would end scontrol by SIGPIPE now and then
# Another port for each job: two may share a machine.
export NNODES=$SLURM_JOB_NUM_NODES MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
# shellcheck disable=SC2016 # each task has a SLURM_NODEID of its own
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$@"' llava "$@"
