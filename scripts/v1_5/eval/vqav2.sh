#!/usr/bin/env bash
# VQAv2's test-dev questions: answer, merge, write what the server takes (it alone can score).
#
#   bash scripts/v1_5/eval/vqav2.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/vqav2.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/vqav2: llava_vqav2_mscoco_test-dev2015.jsonl, llava_vqav2_mscoco_test2015.jsonl (all that an
# upload must cover), test2015/. Settings: _common.sh.
# Writes there answers/SPLIT/NAME/merge.jsonl and answers_upload/SPLIT/NAME.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
start vqav2 vqav2 "$@"

split=llava_vqav2_mscoco_test-dev2015
prepare "$root/$split.jsonl"
prepare "$root/llava_vqav2_mscoco_test2015.jsonl" --split test2015
makes "$root/answers_upload/$split/$name.json"
ask "$root/answers/$split/$name" "$root/answers/$split/$name/merge.jsonl" llava.eval.model_vqa_loader \
    --question-file "$root/$split.jsonl" --image-folder "$root/test2015"
submit "$root/answers/$split/$name/merge.jsonl" "$root/answers_upload/$split/$name.json"
