#!/usr/bin/env bash
# GQA's balanced test-dev questions: answer, merge, score.
#
#   bash scripts/v1_5/eval/gqa.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/gqa.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/gqa: llava_gqa_testdev_balanced.jsonl, data/images/, and GQA's questions under data/. Settings: _common.sh.
# Writes there answers/SPLIT/NAME/merge.jsonl, metrics.json and testdev_balanced_predictions.json (GQA's own
# evaluation program reads that file; under data/ models would overwrite one another).
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate gqa "$@"
