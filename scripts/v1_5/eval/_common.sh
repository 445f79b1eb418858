# shellcheck shell=bash
# What the evaluation scripts share. Sourced by them, never run. Each calls `evaluate`.
#
# Settings, exported or written before the command:
#   EVAL_ROOT             the folder of the benchmarks (default ./playground/data/eval)
#   MODEL_BASE            the base of an adapter (default: the one that its adapter_config.json names)
#   CUDA_VISIBLE_DEVICES  one process for each GPU named here (default 0; empty: no GPU)
#   SHARDS                number of processes instead; they share the GPUs or, without one, the cores
#   LIMIT                 ask a sample of so many questions; the name gets -limitN, nothing is sent in or graded
#   OVERWRITE             1: discard this name's earlier answers and results; 0 (default): ask only what is missing
#   ANSWER_FLAGS          more flags for answering, such as "--batch-size 16 --device cpu"
#   PYTHON                the interpreter (default python)
#   WAIT_S                on several machines: how long the first process waits for the others (default a day)
#   MMBENCH_SPLIT, VQAV2_SPLIT, VIZWIZ_SPLIT  another question file's name, without suffix
#
# On several machines start this once a GPU with torchrun or srun. Each answers its shard, the first merges and scores:
#   torchrun --nnodes 2 --nproc-per-node 8 ... --no-python bash scripts/v1_5/eval/seed.sh MODEL_PATH MODEL_NAME
#   srun --ntasks 16 --gpus-per-task 1 --kill-on-bad-exit=1 bash scripts/v1_5/eval/seed.sh MODEL_PATH MODEL_NAME

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../_help.sh"
PYTHON=${PYTHON:-python}
command -v "$PYTHON" >/dev/null || die "$PYTHON: no such program; set PYTHON to an interpreter"
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-0}"
read -ra answer_flags <<<"${ANSWER_FLAGS:-}"
children=()

stop_children() {
    for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap stop_children EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

# evaluate "BENCHMARK..." [MODEL_PATH [MODEL_NAME]]: prepare, answer in shards, merge, score, write submissions.
evaluate() {
    want_arguments 0 2 "${@:2}"
    local model_path=${2-liuhaotian/llava-v1.5-13b} ranks=1 first=0 local_index=0 wait_s=0 i overwrite=()
    [[ $model_path == [^-]* ]] || die "MODEL_PATH '$model_path': want a folder or hub id (flags: ANSWER_FLAGS)"
    local count=${SHARDS:-$((${#gpus[@]} > 0 ? ${#gpus[@]} : 1))}
    want_number SHARDS "$count"
    case ${OVERWRITE:-0} in 0) ;; 1) overwrite=(--overwrite) ;; *) die "OVERWRITE=$OVERWRITE: want 1 or 0" ;; esac
    local processes=$count
    # torchrun or srun run this script once for each shard. A batch script has no SLURM_STEP_ID.
    if [[ -n ${WORLD_SIZE:-} && -n ${RANK:-} ]]; then
        ranks=$WORLD_SIZE first=$RANK local_index=${LOCAL_RANK:-0}
    elif [[ -n ${SLURM_STEP_ID:-} && -n ${SLURM_PROCID:-} ]]; then
        ranks=${SLURM_STEP_NUM_TASKS:-${SLURM_NTASKS:-1}} first=$SLURM_PROCID local_index=${SLURM_LOCALID:-0}
    fi
    if ((ranks > 1)); then count=$ranks processes=1 wait_s=${WAIT_S:-86400}; else first=0 local_index=0; fi
    read -ra flags <<<"$1"
    flags+=("--model-path=$model_path" ${3+"--name=$3"} ${MODEL_BASE:+"--model-base=$MODEL_BASE"} ${LIMIT:+"--limit=$LIMIT"})
    flags+=("--eval-root=${EVAL_ROOT:-./playground/data/eval}" ${VIZWIZ_SPLIT:+"--split=vizwiz=$VIZWIZ_SPLIT"})
    flags+=(${MMBENCH_SPLIT:+"--split=mmbench=$MMBENCH_SPLIT"} ${VQAV2_SPLIT:+"--split=vqav2=$VQAV2_SPLIT"})
    "$PYTHON" -m llava.eval "${flags[@]}" "${answer_flags[@]}" --steps prepare "${overwrite[@]}"
    for ((i = 0; i < processes; i++)); do start_shard $((first + i)) "$count" $((local_index + i)); done
    wait_for_shards "$first" "$count"
    if ((first > 0)); then exit 0; fi # the first process merges and scores
    "$PYTHON" -m llava.eval "${flags[@]}" --steps merge,score,submit --wait-s "$wait_s"
}

# start_shard INDEX COUNT GPU: start a process that answers its shard of the questions.
start_shard() {
    local cores settings=()
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    [[ ! -t 2 ]] || settings+=(TQDM_POSITION="$1") # each progress bar on its own line
    ((${#gpus[@]} == 0)) || settings+=(CUDA_VISIBLE_DEVICES="${gpus[$3 % ${#gpus[@]}]}")
    settings+=(OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $2 ? cores / $2 : 1))}")
    env "${settings[@]}" "$PYTHON" -m llava.eval "${flags[@]}" --steps answer "${answer_flags[@]}" \
        --num-chunks "$2" --chunk-idx "$1" &
    children+=("$!")
}

# wait_for_shards FIRST COUNT: wait for the processes started here, the first of which is shard FIRST of COUNT.
wait_for_shards() {
    local i status lost='' code=2
    for i in "${!children[@]}"; do
        status=0; wait "${children[i]}" || status=$?
        ((status == 0 || status == 2)) || code=1
        if ((status > 128)); then
            lost+="shard $(($1 + i)) of $2 was killed by signal $((status - 128)) ($(kill -l "$status")); "
        elif ((status > 0)); then
            lost+="shard $(($1 + i)) of $2 exited with $status, see its message above; "
        fi
    done
    children=()
    [[ -n $lost ]] || return 0
    echo "error: ${0##*/}: ${lost}nothing was merged or scored. Answers so far are kept: the same command asks the rest" >&2
    exit "$code" # 2 if the user can fix all of it
}
