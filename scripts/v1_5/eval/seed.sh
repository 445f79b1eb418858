#!/usr/bin/env bash
# SEED-Bench's image questions: answer, merge, score each skill.
#
#   bash scripts/v1_5/eval/seed.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/seed.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/seed_bench: SEED-Bench.json, SEED-Bench-image/, and llava-seed-bench-image.jsonl, which is made
# from SEED-Bench.json if it is not there. Settings: _common.sh.
# Writes there answers/NAME/merge.jsonl, answers/NAME/metrics.json, answers_upload/NAME.jsonl (under one fixed name
# models would overwrite one another).
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate seed "$@"
