#!/usr/bin/env bash
# The whole job on the tiny model, in one command: notebook -> fine-tuning on engine data -> two-shard inference,
# merge and score of the base and of the tuned model -> one table per question type.
#
#   bash scripts/quickstart.sh
#
# These are the scripts of a run on 8xA100; settings and trailing flags make it small. Finished
# steps are not repeated: remove WORK to start over.
#
# Settings: WORK          where data, checkpoint and answers go                   [playground/demo/work]
#           SEED          of the generated data and the training                  [0]
#           ENGINE_TYPES  question types of the engine records: the weak ones;    [7,9]
#                         all: as many records that aim at nothing
#           SHARDS        processes that answer                                   [2]
set -euo pipefail

# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
want_arguments 0 0 "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WORK=${WORK:-playground/demo/work}
SEED=${SEED:-0}
ENGINE_TYPES=${ENGINE_TYPES:-7,9}
export SHARDS=${SHARDS:-2}
want_number SHARDS "$SHARDS"
base=playground/demo/model
name=llava-demo-lora-dataengine
data=$WORK/data
tuned=$WORK/checkpoints/$name
began=$SECONDS

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - began)); }

step "environment"
use_environment notebook
# Where something else runs too, threads that wait by spinning cost a 2-core machine nine tenths of its speed.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
began=$SECONDS

step "1/5 images, scenes, questions and engine records of the demo's world"
if [[ -e $data/seed-$SEED.done ]]; then
    echo "$data is there already, used as it is"
else
    "$PYTHON" playground/demo/generate.py --root "$data" --seed "$SEED" --engine-types "$ENGINE_TYPES"
    touch "$data/seed-$SEED.done"
fi

step "2/5 notebook: engine records to training data, mixed with the base data"
if [[ -e $data/llava_v1_5_mix665k_dataengine.json ]]; then
    echo "$data/llava_v1_5_mix665k_dataengine.json is there already, used as it is"
else
    LLAVA_DATA=$data LLAVA_MODES=mc,mcp "$PYTHON" -m nbconvert --to notebook --execute --output-dir "$WORK" \
        playground/data/process_engine_data.ipynb --log-level ERROR \
        --ExecutePreprocessor.extra_arguments=--log-level=ERROR
fi

step "3/5 LoRA fine-tuning on the mixed data"
MODEL=$base VISION_TOWER=playground/demo/tower PROJECTOR='' DATA_PATH=$data/llava_v1_5_mix665k_dataengine.json \
    IMAGE_FOLDER=$data OUTPUT_DIR=$tuned PER_DEVICE_BATCH=32 \
    bash scripts/v1_5/finetune_lora_dataengine.sh \
    --bf16 False --gradient_checkpointing False --dataloader_num_workers 0 --report_to none --seed "$SEED" \
    --logging_steps 20 --lora_r 16 --lora_alpha 32 --lora_dropout 0 --learning_rate 2e-3 --mm_projector_lr 1e-3

export EVAL_ROOT=$data/eval
step "4/5 the base model's answers, in $SHARDS shards"
bash scripts/v1_5/eval/seed.sh "$base" llava-demo
step "5/5 the tuned model's answers, in $SHARDS shards"
MODEL_BASE=$base bash scripts/v1_5/eval/seed_lora.sh "$tuned" "$name"

step "base against tuned"
"$PYTHON" -m llava.report "$EVAL_ROOT/seed_bench/answers/llava-demo" "$EVAL_ROOT/seed_bench/answers/$name" \
    --out "$WORK/report.md"
cat "$WORK/report.md"
echo "kept in $WORK/report.md; all of it took $((SECONDS - began)) s"
