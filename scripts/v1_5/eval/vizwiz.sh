#!/usr/bin/env bash
# VizWiz's test questions: answer, merge, write what the server takes (it alone can score).
#
#   bash scripts/v1_5/eval/vizwiz.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/vizwiz.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/vizwiz: llava_test.jsonl, test/. Settings: _common.sh.
# Writes there answers/NAME.jsonl and answers_upload/NAME.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
start vizwiz vizwiz "$@"

prepare "$root/llava_test.jsonl"
makes "$root/answers_upload/$name.json"
ask "$root/answers/$name" "$root/answers/$name.jsonl" llava.eval.model_vqa_loader \
    --question-file "$root/llava_test.jsonl" --image-folder "$root/test"
submit "$root/answers/$name.jsonl" "$root/answers_upload/$name.json"
