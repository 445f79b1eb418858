#!/usr/bin/env bash
# MMBench dev (or test): answer, merge, score in a circle, write what the server takes.
#
#   bash scripts/v1_5/eval/mmbench.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/mmbench.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/mmbench: mmbench_dev_20230712.tsv (images are in it). Settings: _common.sh, and
#   MMBENCH_SPLIT  another TSV's name, e.g. mmbench_test_20230712, which has no answers: the server scores it
# Writes there answers/SPLIT/NAME.jsonl, answers/SPLIT/NAME/metrics.json, answers_upload/SPLIT/NAME.xlsx.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate mmbench "$@"
