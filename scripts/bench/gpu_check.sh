#!/usr/bin/env bash
# Check a GPU: what it picks, whether answers and losses are right on it, and how fast it is.
#
#   bash scripts/bench/gpu_check.sh                   all parts, each under nine minutes
#   bash scripts/bench/gpu_check.sh PART...           some: device, tests, eval, train, resume, limits
#   bash scripts/bench/gpu_check.sh report FILE...    join gpu_check.json files of several calls
#
# Models have LLaVA-1.5-7B's shape and random weights, which are made here; nothing is downloaded. About 80 GB of the
# GPU's memory and 40 GB of disk are used. What fails is recorded with its error, and the rest still runs.
# Writes: OUT/gpu_check.json and OUT/gpu_check.md, after every check; parts that were there before stay in them.
#
# Settings: OUT       folder of the report              [gpu-check]
#           WORK      folder of the models              [a temporary one, removed at the end]
#           REHEARSE  1: tiny models, on the CPU        [0]
#           PYTHON    interpreter                       [python]
set -euo pipefail

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_help.sh"
export OUT=${OUT:-gpu-check} REHEARSE=${REHEARSE:-0}
# One process on one GPU: with several, a process that sees them all trains on them all.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
# DeepSpeed would look for a GPU, and warn in the midst of tables.
[[ $REHEARSE != 1 ]] || export CUDA_VISIBLE_DEVICES='' DS_ACCELERATOR=cpu
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$repo/scripts/bench/gpu_check.py" "$@"
