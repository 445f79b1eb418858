# shellcheck shell=bash
# What the scripts of benchmarks with a judge share, beside _common.sh. Sourced by them, never run.
#
# Settings:
#   JUDGE_MODEL  a model that grades MM-Vet and LLaVA-Bench, on the server of OPENAI_BASE_URL (default: none)
#   JUDGE_FLAGS  more flags of `llava judge`, such as "--prices prices.toml --budget 5"

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../_help.sh"

# grade "BENCHMARK..." [MODEL_PATH [MODEL_NAME]]: let JUDGE_MODEL, if it is set, grade what `evaluate` answered.
# Part of the questions (LIMIT) is not graded.
grade() {
    [[ -n ${JUDGE_MODEL:-} && -z ${LIMIT:-} ]] || return 0
    local names judge_flags name
    name=${3-$(basename "${2-liuhaotian/llava-v1.5-13b}")}
    read -ra names <<<"$1"
    read -ra judge_flags <<<"${JUDGE_FLAGS:-}"
    "$PYTHON" -m llava.eval.judge "${names[@]}" "--name=$name" "--judge=$JUDGE_MODEL" \
        "--eval-root=${EVAL_ROOT:-./playground/data/eval}" "${judge_flags[@]}"
}
