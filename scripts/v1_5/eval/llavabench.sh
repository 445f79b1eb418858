#!/usr/bin/env bash
# LLaVA-Bench (in the wild): answer, merge, write what its judge takes (a paid model), or score by its reviews where
# they are there.
#
#   bash scripts/v1_5/eval/llavabench.sh [MODEL_PATH] [MODEL_NAME]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/llavabench.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b
#
# Reads $EVAL_ROOT/llava-bench-in-the-wild: questions.jsonl, context.jsonl, answers_gpt4.jsonl, images/, and rule.json,
# which is not in the download but in LLaVA's repository, beside its evaluation; and, where they are there and not older
# than the answers, the reviews reviews/NAME.jsonl or reviews/NAME-evalN.jsonl (the newest). Settings: _common.sh, _judge.sh.
# Writes there answers/NAME.jsonl and judge_input/NAME.jsonl or, from reviews, answers/NAME/metrics.json.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck source=scripts/v1_5/eval/_judge.sh
source "$(dirname "${BASH_SOURCE[0]}")/_judge.sh"
evaluate llavabench "$@"
grade llavabench "$@"
