#!/usr/bin/env bash
# VizWiz's test (or val) questions: answer, merge, write what the server takes (it alone can score test), score val.
#
#   bash scripts/v1_5/eval/vizwiz.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/vizwiz.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/vizwiz: llava_test.jsonl, test/. Settings: _common.sh, and
#   VIZWIZ_SPLIT  llava_val: llava_val.jsonl (made of val.json where it is not there) about val/, scored by val.json
# Writes there answers/NAME.jsonl and answers_upload/NAME.json; of val answers/llava_val/NAME.jsonl,
# answers/llava_val/NAME/metrics.json and answers_upload/llava_val/NAME.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate vizwiz "$@"
