#!/usr/bin/env bash
# MMBench dev in Chinese: answer, merge, score in a circle, write what the server takes.
#
#   bash scripts/v1_5/eval/mmbench_cn.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/mmbench_cn.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/mmbench_cn: mmbench_dev_cn_20231003.tsv (images are in it). Settings: _common.sh.
# Writes there answers/SPLIT/NAME.jsonl, answers/SPLIT/NAME/metrics.json, answers_upload/SPLIT/NAME.xlsx.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate mmbench_cn "$@"
