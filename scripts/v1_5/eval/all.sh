#!/usr/bin/env bash
# Every benchmark whose data is there, with the model loaded once in each process, and the paper's row.
#
#   bash scripts/v1_5/eval/all.sh MODEL_PATH MODEL_NAME [BENCHMARK...]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/all.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b seed mme
#
# BENCHMARKs are those of `llava benchmarks list` (default: all of them). A benchmark that lacks data is named with where
# to get it; if it was given by name, that is an error. Settings: _common.sh, _judge.sh. Writes what their own scripts
# write. If one benchmark cannot be scored, the others are; the last line names it, and the exit code is 1.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck source=scripts/v1_5/eval/_judge.sh
source "$(dirname "${BASH_SOURCE[0]}")/_judge.sh"
want_arguments 2 99 "$@"
(($# > 2)) || set -- "$@" all
evaluate "${*:3}" "$1" "$2"
if [[ " ${*:3} " =~ \ (all|mmvet|llava_?bench)\  ]]; then grade "${*:3}" "$1" "$2"; fi
