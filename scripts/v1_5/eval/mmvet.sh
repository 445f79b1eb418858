#!/usr/bin/env bash
# MM-Vet: answer, merge, write what its judge takes (a paid model), score by its grades where they are there.
#
#   bash scripts/v1_5/eval/mmvet.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/mmvet.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/mm-vet: llava-mm-vet.jsonl, images/; and, where they are there and not older than the answers, the
# grades results/NAME_gpt-4-grade-1runs.json (of any GPT and number of runs; the newest) with mm-vet.json.
# Settings: _common.sh, _judge.sh.
# Writes there answers/NAME.jsonl, results/NAME.json and, from grades, answers/NAME/metrics.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck source=scripts/v1_5/eval/_judge.sh
source "$(dirname "${BASH_SOURCE[0]}")/_judge.sh"
evaluate mmvet "$@"
grade mmvet "$@"
