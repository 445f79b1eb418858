#!/usr/bin/env bash
# MM-Vet: answer, merge, write what its judge takes (a paid model; it alone can score).
#
#   bash scripts/v1_5/eval/mmvet.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/mmvet.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/mm-vet: llava-mm-vet.jsonl, images/. Settings: _common.sh.
# Writes there answers/NAME.jsonl and results/NAME.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
start mmvet mm-vet "$@"

prepare "$root/llava-mm-vet.jsonl"
makes "$root/results/$name.json"
ask "$root/answers/$name" "$root/answers/$name.jsonl" llava.eval.model_vqa \
    --question-file "$root/llava-mm-vet.jsonl" --image-folder "$root/images"
"$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/../../convert_mmvet_for_eval.py" \
    --src "$root/answers/$name.jsonl" --dst "$root/results/$name.json"
