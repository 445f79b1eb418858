#!/usr/bin/env bash
# VQAv2's test-dev (or val) questions: answer, merge, write what the server takes (it alone can score test), score val.
#
#   bash scripts/v1_5/eval/vqav2.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/vqav2.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/vqav2: llava_vqav2_mscoco_test-dev2015.jsonl, llava_vqav2_mscoco_test2015.jsonl (all that an
# upload must cover), test2015/. Settings: _common.sh, and
#   VQAV2_SPLIT  another question file's name: llava_vqav2_mscoco_test2015, or llava_vqav2_mscoco_val2014, which reads
#                val2014/ and v2_mscoco_val2014_annotations.json and is scored here
# Writes there answers/SPLIT/NAME/merge.jsonl, answers_upload/SPLIT/NAME.json and, of val, metrics.json beside merge.jsonl.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate vqav2 "$@"
