#!/usr/bin/env bash
# Every benchmark whose data is there, with the model loaded once in each process, and the paper's row.
#
#   bash scripts/v1_5/eval/all.sh MODEL_PATH MODEL_NAME [BENCHMARK...]
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/v1_5/eval/all.sh ./checkpoints/llava-v1.5-7b llava-v1.5-7b seed mme
#
# BENCHMARKs are the names of the scripts beside this one (default: all of them). What lacks data is named with where
# to get it; where BENCHMARKs are given, that is an error. Settings: _common.sh, and the scripts' own.
# Each script first only notes what it would ask; one process a GPU answers all of that; then the scripts run as ever,
# find every answer there, and merge and score. Writes what they write. Where one of them fails there, the others'
# scores and the row are made all the same; the last line names it, and the exit code is 1.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$here/_common.sh"
usage="usage: ${0##*/} MODEL_PATH MODEL_NAME [BENCHMARK...]"
model_path=${1:?$usage}
name=${2:?$usage}
shift 2

known=(seed mmbench mme gqa sqa vqav2 pope textvqa vizwiz mmvet mmbench_cn llavabench)
for script in "$@"; do
    [[ " ${known[*]} " == *" $script "* ]] || die "no benchmark '$script'; there are: ${known[*]}"
done
wanted=(--need-all)
if (($# == 0)); then
    set -- "${known[@]}"
    wanted=()
fi
declare -A splits=([mmbench]=${MMBENCH_SPLIT-} [vqav2]=${VQAV2_SPLIT-} [vizwiz]=${VIZWIZ_SPLIT-})
for script in "$@"; do wanted+=("$script${splits[$script]:+=${splits[$script]}}"); done
notes=$(mktemp -d)
trap 'stop_children; rm -rf "$notes"' EXIT
"$PYTHON" -m llava.benchmarks present --eval-root "$EVAL_ROOT" "${wanted[@]}" >"$notes/present"
mapfile -t present <"$notes/present"
((${#present[@]} > 0)) || die "there is no benchmark's data under $EVAL_ROOT"

flags=()
for script in "${present[@]}"; do
    mkdir "$notes/$script"
    ASK_LATER=$notes/$script bash "$here/$script.sh" "$model_path" "$name"
    flags+=("$notes/$script"/*.job)
done
unset OVERWRITE # done; what is answered from here on is to stay

parts='' wait_s=0 module=llava.eval.model_vqa_all
read -r count index local_index < <("$PYTHON" -m llava.infer.jobs.shards launched)
answer_in_shards
failed=()
touch "$notes/scored"
for script in "${present[@]}"; do
    SCORED=$notes/scored bash "$here/$script.sh" "$model_path" "$name" || failed+=("$script")
done
if ((index == 0)); then # the first process of the job has the scores
    mapfile -t scored <"$notes/scored"
    "$PYTHON" -m llava.benchmarks row --name "$name" "${scored[@]}"
fi
((${#failed[@]} == 0)) || die "failed, see the message of each above: ${failed[*]}"
