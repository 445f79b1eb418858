#!/usr/bin/env bash
# The quickstart's control: is it the engine's aim at the weak types that helps, or more data of any kind? For each
# seed, the quickstart runs twice, with records of the weak types and with as many of all nine types evenly; all else
# is equal. Prints, per seed, what the aimed run has over the other one.
#
#   bash playground/demo/control.sh
#
# Settings: WORK   where the runs go     [playground/demo/work/control]
#           SEEDS  one pair of runs each [0 1 2]
set -euo pipefail

# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/_environment.sh"
want_arguments 0 0 "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
use_environment notebook

WORK=${WORK:-playground/demo/work/control}
for seed in ${SEEDS:-0 1 2}; do
    for types in 7,9 all; do
        WORK=$WORK/$seed-$types SEED=$seed ENGINE_TYPES=$types bash scripts/quickstart.sh
    done
    tuned=data/eval/seed_bench/answers/llava-demo-lora-dataengine
    "$PYTHON" -m llava.report "$WORK/$seed-all/$tuned" "$WORK/$seed-7,9/$tuned" --out "$WORK/seed-$seed.md"
    cat "$WORK/seed-$seed.md"
done
