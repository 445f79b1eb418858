#!/usr/bin/env bash
# Makes the demo's committed weights from nothing: tower and base language model by this folder's own small code, then
# projector and whole model by our own pretrain.sh and finetune.sh. About 40 minutes on two CPU cores (RESULTS.md).
#
#   bash playground/demo/recipe.sh
#
# Settings: WORK  where data and steps on the way go  [playground/demo/work/recipe]
#           SEED  of everything                       [1]
# Writes playground/demo/tower and playground/demo/model. A step whose result is there is not done again.
set -euo pipefail

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/_help.sh"
want_arguments 0 0 "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
WORK=${WORK:-playground/demo/work/recipe}
SEED=${SEED:-1}
export PYTHON=${PYTHON:-python}
export PYTHONPATH="playground/demo:.${PYTHONPATH:+:$PYTHONPATH}"
demo=playground/demo
language=$WORK/language
data=$WORK/data
plain=(--bf16 False --gradient_checkpointing False --dataloader_num_workers 0 --report_to none --logging_steps 20 --seed "$SEED")

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

step "1/5 vision tower"
[[ -e $WORK/tower/model.safetensors ]] || "$PYTHON" -m recipe.tower --out "$WORK/tower" --seed "$SEED"
mkdir -p "$demo/tower"
cp "$WORK/tower"/* "$demo/tower/"

step "2/5 vocabulary and base language model"
[[ -e $language/tokenizer.model ]] || "$PYTHON" -m recipe.vocabulary --out "$language"
[[ -e $language/model.safetensors ]] || "$PYTHON" -m recipe.language --tower "$demo/tower" --out "$language" --seed "$SEED"

step "3/5 stage 1: projector"
[[ -e $data/llava_v1_5_mix665k.json ]] ||
    "$PYTHON" "$demo/generate.py" --root "$data" --seed "$SEED" --captions 6400 --base 9600 \
        --base-types 1,2,3,8,7,9,2,3,8,8 --engine 0 --heldout 0
[[ -e $WORK/llava-demo-pretrain/mm_projector.bin ]] ||
    MODEL=$language VISION_TOWER=$demo/tower OUTPUT_DIR=$WORK/llava-demo-pretrain PER_DEVICE_BATCH=64 \
        DATA_PATH=$data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json IMAGE_FOLDER=$data/LLaVA-Pretrain/images \
        bash scripts/v1_5/pretrain.sh "${plain[@]}" --pretrain_mm_mlp_adapter "$language/mm_projector.bin"

step "4/5 stage 2: language model and projector"
[[ -e $WORK/llava-demo/model.safetensors ]] ||
    MODEL=$language VISION_TOWER=$demo/tower OUTPUT_DIR=$WORK/llava-demo PER_DEVICE_BATCH=64 \
        PROJECTOR=$WORK/llava-demo-pretrain/mm_projector.bin \
        DATA_PATH=$data/llava_v1_5_mix665k.json IMAGE_FOLDER=$data \
        bash scripts/v1_5/finetune.sh "${plain[@]}" --learning_rate 5e-4

step "5/5 fp16, without the tower's copy"
"$PYTHON" -m recipe.ship --tuned "$WORK/llava-demo" --tower "$demo/tower" --out "$demo/model"
echo "$demo/tower and $demo/model are made; all of it took $SECONDS s"
