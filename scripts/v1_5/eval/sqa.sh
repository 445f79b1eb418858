#!/usr/bin/env bash
# ScienceQA's test questions: answer, merge, score all and those with an image.
#
#   bash scripts/v1_5/eval/sqa.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/sqa.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/scienceqa: llava_test_CQM-A.json, problems.json, pid_splits.json, images/test/. Settings: _common.sh.
# Writes there answers/NAME.jsonl, answers/NAME_output.jsonl, answers/NAME_result.json (ScienceQA's own evaluation
# program reads the last) and answers/NAME/metrics.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
evaluate sqa "$@"
