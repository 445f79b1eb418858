#!/usr/bin/env bash
# TextVQA's validation questions with OCR tokens: answer, merge, score.
#
#   bash scripts/v1_5/eval/textvqa.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/textvqa.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/textvqa: llava_textvqa_val_v051_ocr.jsonl, TextVQA_0.5.1_val.json, train_images/. Settings: _common.sh.
# Writes there answers/NAME.jsonl and answers/NAME/metrics.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate textvqa "$@"
