# shellcheck shell=bash
# What the evaluation scripts share: which model, which processes, and that a lost process fails the script.
# Sourced by them, never run. They set -euo pipefail and call start, prepare, makes, ask, score, judged and
# submit.
#
# Settings, all exported or written before the command:
#   EVAL_ROOT             where the benchmarks lie (default ./playground/data/eval)
#   MODEL_BASE            what an adapter is applied to; empty: what its adapter_config.json names
#   CUDA_VISIBLE_DEVICES  one process for each GPU named here (default 0; empty: no GPU)
#   SHARDS                how many processes instead; without a GPU they share the cores, else the GPUs
#   OVERWRITE=1           forget this name's earlier answers and what was made of them; without it only missing
#                         answers are asked
#   ANSWER_FLAGS          more flags for the answering command, e.g. "--batch-size 16 --device cpu"
#   PYTHON                the interpreter (default python)
#   WAIT_S                on several machines: how long the first process waits for the others (default a day)
#
# On several machines start one process a GPU with torchrun or srun; each answers its chunk, the first one waits
# for all, merges and scores:
#   torchrun --nnodes 2 --nproc-per-node 8 ... --no-python bash scripts/v1_5/eval/seed.sh MODEL_PATH MODEL_NAME
#   srun --ntasks 16 --gpus-per-task 1 --kill-on-bad-exit=1 bash scripts/v1_5/eval/seed.sh MODEL_PATH MODEL_NAME

PYTHON=${PYTHON:-python}
EVAL_ROOT=${EVAL_ROOT:-./playground/data/eval}
children=()
made=()

die() {
    printf 'error: %s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

stop_children() {
    local pid
    for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap stop_children EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# start BENCHMARK FOLDER [MODEL_PATH [MODEL_NAME]]: sets benchmark, root, model_path and name (the path's last part).
start() {
    (($# <= 4)) || die "usage: ${0##*/} [MODEL_PATH] [MODEL_NAME]"
    benchmark=$1
    root=$EVAL_ROOT/$2
    model_path=${3:-liuhaotian/llava-v1.5-13b}
    # shellcheck disable=SC2034 # used by the scripts
    name=${4:-$(basename "$model_path")}
}

# prepare FILE [FLAG...]: make the question file from the benchmark's official download if it is not there.
prepare() {
    [[ -e $1 ]] || "$PYTHON" -m llava.benchmarks prepare "$benchmark" --root "$root" "${@:2}"
}

# makes FILE...: what the script makes of the answers. With OVERWRITE, ask removes it before it asks, so that nothing
# is left that an earlier model said.
makes() {
    made=("$@")
}

# ask PARTS MERGED MODULE [FLAG...]: all processes answer into the folder PARTS; the file MERGED has every answer.
# With ASK_LATER, a folder (all.sh sets it), only the command is noted there, and the script ends.
ask() {
    local parts=$1 merged=$2 module=$3 count=1 index=0 local_index=0 wait_s=0 extra=() flags
    shift 3
    read -ra extra <<<"${ANSWER_FLAGS:-}"
    flags=(--model-path "$model_path" --temperature 0 --conv-mode vicuna_v1 "$@" "${extra[@]}")
    [[ -z ${MODEL_BASE:-} ]] || flags+=(--model-base "$MODEL_BASE")
    mkdir -p "$parts"
    read -r count index local_index < <("$PYTHON" -m llava.infer.jobs.shards launched)
    if [[ -n ${OVERWRITE:-} ]]; then
        ((count == 1)) || die "OVERWRITE is for one machine; remove $parts before the processes start"
        "$PYTHON" -m llava.infer.jobs.shards discard "$parts"
        rm -f "$merged" "${made[@]}"
    fi
    if [[ -n ${ASK_LATER:-} ]]; then
        printf '%s\0' "$module" "$parts" "${flags[@]}" >"$ASK_LATER/$benchmark.job"
        exit 0
    fi
    answer_in_shards
    if ((index > 0)); then exit 0; fi # the first process of the job does the rest
    "$PYTHON" -m llava.infer.jobs.shards merge "$parts" --out "$merged" --wait-s "$wait_s"
}

# Starts this machine's processes and waits for them. Uses its caller's count, index, local_index, wait_s, module,
# flags, and parts (empty where the module finds its own answers files).
answer_in_shards() {
    local gpus=()
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-0}"
    if ((count > 1)); then
        wait_s=${WAIT_S:-86400}
        run_shard "$index" "$count" "$local_index"
    else
        count=${SHARDS:-${#gpus[@]}}
        ((count > 0)) || count=1
        for ((index = 0; index < count; index++)); do run_shard "$index" "$count" "$index"; done
        index=0
    fi
    wait_for_shards "$index" "$count"
}

# Uses the variables of answer_in_shards.
run_shard() {
    local index=$1 count=$2 place=$3 settings=()
    [[ ! -t 2 ]] || settings+=(TQDM_POSITION="$index") # each bar on a line of its own
    ((${#gpus[@]} == 0)) || settings+=(CUDA_VISIBLE_DEVICES="${gpus[place % ${#gpus[@]}]}")
    settings+=(OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(threads "$count")}")
    env "${settings[@]}" "$PYTHON" -m "$module" "${flags[@]}" \
        ${parts:+--answers-file "$parts/${count}_$index.jsonl"} --num-chunks "$count" --chunk-idx "$index" &
    children+=("$!")
}

threads() {
    local cores
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    echo $((cores / $1 > 0 ? cores / $1 : 1))
}

wait_for_shards() {
    local first=$1 count=$2 status lost=() i
    for i in "${!children[@]}"; do
        status=0
        wait "${children[i]}" || status=$?
        ((status == 0)) || lost+=("shard $((first + i)) of $count $(reason "$status")")
    done
    children=()
    ((${#lost[@]} == 0)) ||
        die "$(printf '%s; ' "${lost[@]}")nothing was merged or scored. Answers so far are kept: the same command asks the rest"
}

reason() {
    if (($1 > 128)); then echo "was killed by signal $(($1 - 128)) ($(kill -l "$1"))"; else echo "exited with $1, see its message above"; fi
}

# score ANSWERS FOLDER [FLAG...]: the scores on stdout and in FOLDER/metrics.json.
score() {
    "$PYTHON" -m llava.benchmarks score "$benchmark" --root "$root" --answers "$1" --save-path "$2" "${@:3}"
    [[ -z ${SCORED:-} ]] || printf '%s\n' "$2/metrics.json" >>"$SCORED" # all.sh asks which files there are
}

# judged PARTS FILE...: prints the newest of FILEs, a judge's grades, that are there. Those that are older than the
# answers in PARTS are of others.
judged() {
    local answers=$1/journal/run.json file newest=''
    shift
    for file in "$@"; do
        if [[ ! -e $file ]]; then continue; fi # a pattern that nothing matches
        if [[ $file -ot $answers ]]; then
            echo "left out: $file is older than the answers" >&2
        elif [[ -z $newest || $file -nt $newest ]]; then
            newest=$file
        fi
    done
    printf '%s' "$newest"
}

# submit ANSWERS FILE [FLAG...]: the file that the benchmark's server or judge takes.
submit() {
    "$PYTHON" -m llava.benchmarks submit "$benchmark" --root "$root" --answers "$1" --output "$2" "${@:3}"
}
