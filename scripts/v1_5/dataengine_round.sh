#!/usr/bin/env bash
# Rounds of the data engine, from a model's bad cases to a better model: split, pool, plan, requests, generate, clean, mix,
# train, evaluate, score, report. llava/data_engine/loop/README.md describes the steps and their files.
#
#   bash scripts/v1_5/dataengine_round.sh
#
# Runs rounds FIRST to ROUNDS. What is done is not paid for or trained again: with ROUNDS=1, and later FIRST=2 ROUNDS=2, it is
# one command a round, and what a person edits in a round's folder in between is honoured by the steps after it.
#
# The provider is any OpenAI-compatible server: OPENAI_BASE_URL, LLAVA_ENGINE_MODEL and, where it wants one, OPENAI_API_KEY.
#
# Settings: WORK            rounds/, data/, checkpoints/ of all rounds   [./playground/data/engine]
#           SEED            of every random choice                       [42]
#           ROUNDS          the last round to run                        [1]
#           FIRST           the first one; those before it are done      [1]
#           ARMS            guided, and uniform and retrieved to compare with                              [guided]
#           MODEL           what every round starts from                 [liuhaotian/llava-v1.5-7b]
#           EVAL_ROOT       SEED-Bench, the guiding benchmark, is there  [./playground/data/eval]
#           DATA_PATH       base data, mixed with all records so far     [./playground/data/llava_v1_5_mix665k.json]
#           IMAGE_FOLDER    what the image paths of all data start from  [./playground/data]
#           ROUND_SETTINGS  of round.toml, as "requests=5000 alpha=1"
#           REQUEST_FLAGS   of `llava engine requests`: where images and their annotations are
#           GENERATE_FLAGS  of `llava engine generate`, as "--prices prices.toml --budget 20"
#           RETRIEVE_FLAGS  of `llava engine retrieve`, for the arm retrieved          [--records DATA_PATH]
#           CLEAN_FLAGS     of `llava engine clean`
#           MIX_FLAGS       of `llava engine mix`, as "--modes mc,mcp --replay 1"
#           TRAIN_FLAGS     of finetune_lora_dataengine.sh
#           RECORDS         train on so many accepted records for each round, the same in all arms            [all]
#           TOGETHER        1: the arms of a round run at the same time [0]
#           INCREMENTAL     1: train the last round's adapter further, on the new records and a replay of the base [0]
# Also read: the settings of _train.sh and eval/_common.sh. Needs `pip install -e ".[engine]"`.
set -euo pipefail

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_help.sh"
want_arguments 0 0 "$@"
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHON=${PYTHON:-python}
command -v "$PYTHON" >/dev/null || die "$PYTHON: no such program; set PYTHON to an interpreter"
"$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' \
    jinja2 openai sklearn || die "rounds need packages that are missing: pip install -e '.[engine]'"
export PYTHONPATH="${scripts%/scripts/v1_5}${PYTHONPATH:+:$PYTHONPATH}"

WORK=${WORK:-./playground/data/engine}
SEED=${SEED:-42}
ROUNDS=${ROUNDS:-1}
FIRST=${FIRST:-1}
want_number ROUNDS "$ROUNDS"
want_number FIRST "$FIRST"
MODEL=${MODEL:-liuhaotian/llava-v1.5-7b}
export EVAL_ROOT=${EVAL_ROOT:-./playground/data/eval}
base_data=${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}
export IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data}
read -ra arms <<<"${ARMS:-guided}"
read -ra request_flags <<<"${REQUEST_FLAGS:-}"
read -ra retrieve_flags <<<"${RETRIEVE_FLAGS:---records $base_data}"
read -ra generate_flags <<<"${GENERATE_FLAGS:-}"
read -ra clean_flags <<<"${CLEAN_FLAGS:-}"
read -ra mix_flags <<<"${MIX_FLAGS:-}"
read -ra train_flags <<<"${TRAIN_FLAGS:-}"
rounds=$WORK/rounds
answers=$EVAL_ROOT/seed_bench/answers

engine() { "$PYTHON" -m llava.data_engine "$@"; }

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

# folder_of ROUND ARM: the round's folder
folder_of() { if [[ $2 == guided ]]; then echo "$rounds/$1"; else echo "$rounds/$1-$2"; fi; }

# name_of ROUND ARM: what the model trained on this round is called
name_of() { if (($1 == 0)); then echo "$(basename "$MODEL")-base"; else echo "llava-lora-round$1-$2"; fi; }

# make_records ROUND ARM: from the bad cases of the model before the round to accepted records
make_records() {
    local folder setting flags=()
    folder=$(folder_of "$1" "$2")
    for setting in ${ROUND_SETTINGS:-}; do flags+=(--set "$setting"); done
    engine pool "$folder" "$answers/$(name_of $(($1 - 1)) "$2")" --set "arm=$2" --set "seed=$SEED" "${flags[@]}"
    engine plan "$folder"
    if [[ $2 == retrieved ]]; then
        engine retrieve "$folder" "${retrieve_flags[@]}"
    else
        engine requests "$folder" --image-root "$IMAGE_FOLDER" --eval-root "$EVAL_ROOT" "${request_flags[@]}"
        engine generate "$folder" --image-root "$IMAGE_FOLDER" "${generate_flags[@]}"
    fi
    engine clean "$folder" --eval-root "$EVAL_ROOT" "${clean_flags[@]}"
}

# train_and_score ROUND ARM: on the base data and the arm's records of all rounds so far
train_and_score() {
    local folder name mixed adapter='' rounds_in=$1 flags=("${mix_flags[@]}")
    folder=$(folder_of "$1" "$2") name=$(name_of "$1" "$2") mixed=$WORK/data/$(name_of "$1" "$2").json
    if ((${INCREMENTAL:-0} && $1 > 1)); then
        adapter=$WORK/checkpoints/$(name_of $(($1 - 1)) "$2") rounds_in=1 flags+=(--incremental)
    fi
    [[ -z ${RECORDS:-} ]] || flags+=(--sample $((RECORDS * rounds_in)))
    engine mix --round "$folder" --base "$base_data" --output "$mixed" --seed "$SEED" "${flags[@]}"
    INIT_ADAPTER=$adapter MODEL=$MODEL PROJECTOR=${PROJECTOR-} DATA_PATH=$mixed OUTPUT_DIR=$WORK/checkpoints/$name \
        bash "$scripts/finetune_lora_dataengine.sh" --seed "$SEED" "${train_flags[@]}"
    MODEL_BASE=$MODEL bash "$scripts/eval/seed_lora.sh" "$WORK/checkpoints/$name" "$name"
    engine score "$folder" "$answers/$name"
}

# run_arm ROUND ARM
run_arm() {
    step "round $1 of $ROUNDS, $2: records"
    make_records "$1" "$2"
    step "round $1 of $ROUNDS, $2: training and score"
    train_and_score "$1" "$2"
}

trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT
if ((FIRST == 1)); then
    step "the model before the first round"
    bash "$scripts/eval/seed.sh" "$MODEL" "$(name_of 0 guided)"
    engine split "$rounds" "$answers/$(name_of 0 guided)" --seed "$SEED"
fi
for ((round = FIRST; round <= ROUNDS; round++)); do
    for arm in "${arms[@]}"; do
        if ((${TOGETHER:-0})); then run_arm "$round" "$arm" & else run_arm "$round" "$arm"; fi
    done
    for job in $(jobs -p); do wait "$job"; done
done
step "report"
engine report "$rounds"
engine status "$rounds"
