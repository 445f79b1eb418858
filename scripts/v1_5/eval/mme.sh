#!/usr/bin/env bash
# MME: answer, merge, score perception and cognition.
#
#   bash scripts/v1_5/eval/mme.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/mme.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/MME: llava_mme.jsonl, MME_Benchmark_release_version/ (images and ground truth). Settings: _common.sh.
# Writes there answers/NAME.jsonl, answers/NAME/metrics.json, and eval_tool/answers/NAME/, which MME's own
# calculation.py reads.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate mme "$@"
