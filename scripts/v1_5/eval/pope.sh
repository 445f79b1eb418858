#!/usr/bin/env bash
# POPE's three lists: answer, merge, score each.
#
#   bash scripts/v1_5/eval/pope.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/pope.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/pope: llava_pope_test.jsonl, coco/ (the lists with labels), val2014/. Settings: _common.sh.
# Writes there answers/NAME.jsonl and answers/NAME/metrics.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate pope "$@"
