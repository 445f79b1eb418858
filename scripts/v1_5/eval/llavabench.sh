#!/usr/bin/env bash
# LLaVA-Bench (in the wild): answer, merge, write what its judge takes (a paid model), or score by its reviews where
# they are there.
#
#   bash scripts/v1_5/eval/llavabench.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/llavabench.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/llava-bench-in-the-wild: questions.jsonl, context.jsonl, answers_gpt4.jsonl, images/, and rule.json,
# which is not in the download but in LLaVA's repository, beside its evaluation; and, where they are there and not older
# than the answers, the reviews reviews/NAME.jsonl or reviews/NAME-evalN.jsonl (the newest). Settings: _common.sh.
# Writes there answers/NAME.jsonl and judge_input/NAME.jsonl or, from reviews, answers/NAME/metrics.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
start llava_bench llava-bench-in-the-wild "$@"

"$PYTHON" -m llava.benchmarks present --eval-root "$EVAL_ROOT" --need-all "$benchmark" >/dev/null
makes "$root/judge_input/$name.jsonl" "$root/answers/$name/metrics.json"
ask "$root/answers/$name" "$root/answers/$name.jsonl" llava.eval.model_vqa \
    --question-file "$root/questions.jsonl" --image-folder "$root/images"
reviews=$(judged "$root/answers/$name" "$root/reviews/$name.jsonl" "$root/reviews/$name-eval"[0-9]*.jsonl)
if [[ -n $reviews ]]; then
    score "$reviews" "$root/answers/$name"
else
    submit "$root/answers/$name.jsonl" "$root/judge_input/$name.jsonl"
fi
