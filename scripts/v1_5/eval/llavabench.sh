#!/usr/bin/env bash
# LLaVA-Bench (in the wild): answer and merge. The score is a paid model's opinion: `python -m llava.benchmarks submit
# llava_bench` writes what to ask it, `score` reads its reviews.
#
#   bash scripts/v1_5/eval/llavabench.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/llavabench.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/llava-bench-in-the-wild: questions.jsonl, images/. Settings: _common.sh.
# Writes there answers/NAME.jsonl.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
start llava_bench llava-bench-in-the-wild "$@"

ask "$root/answers/$name" "$root/answers/$name.jsonl" llava.eval.model_vqa \
    --question-file "$root/questions.jsonl" --image-folder "$root/images"
