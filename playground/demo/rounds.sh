#!/usr/bin/env bash
# Rounds of the data engine on the tiny model, without a network: dataengine_round.sh as a real server's user runs it, with
# provider.py as the server. 6 to 20 minutes on two CPU cores.
#
#   bash playground/demo/rounds.sh
#
# Finished steps are not repeated: remove WORK to start over.
#
# Settings: WORK      where data, checkpoints and rounds go; WORK/rounds/summary.json at the end [playground/demo/work/rounds]
#           SEED      of the world's images, the provider, the rounds and the training           [0]
#           ROUNDS    how many                                                                   [2]
#           ARMS      guided, and uniform to compare with                                        [guided uniform]
#           MISTAKES  share of the provider's answers with a mistake                             [0.1]
#           CLEAN_FLAGS  --unchecked: without cleaning                                           []
#           GENERATE_FLAGS  of `llava engine generate`                        [made-up prices, a budget]
set -euo pipefail

# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/_environment.sh"
want_arguments 0 0 "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export WORK=${WORK:-playground/demo/work/rounds}
export SEED=${SEED:-0} ROUNDS=${ROUNDS:-2} ARMS=${ARMS:-guided uniform}
want_number ROUNDS "$ROUNDS"
data=$WORK/data
images=$data/demo/rounds

use_environment engine
# Two processes of one thread are faster on two cores than one of two: an arm each.
export TOGETHER=1 OMP_NUM_THREADS=1 SHARDS=1
# Where something else runs too, threads that wait by spinning cost a 2-core machine nine tenths of its speed.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

if [[ ! -e $data/seed-$SEED.done ]]; then
    # Of the types that the tiny model cannot learn (4, 5 and 6), one: a plan must find out and give up on it.
    "$PYTHON" playground/demo/generate.py --root "$data" --seed "$SEED" --engine 0 --rounds 5200 \
        --heldout 600 --heldout-types 1,2,3,4,7,8,9 --base 4400 --base-types 2,8,2,8,2,8,1,3,7,9
    touch "$data/seed-$SEED.done"
fi

export MODEL=playground/demo/model VISION_TOWER=playground/demo/tower
export EVAL_ROOT=$data/eval DATA_PATH=$data/llava_v1_5_mix665k.json IMAGE_FOLDER=$data PER_DEVICE_BATCH=32
export ROUND_SETTINGS="requests=1900 alpha=1 guess=true rounds=$ROUNDS"
export REQUEST_FLAGS="--images $images --coco-captions $images.captions.json --coco-instances $images.instances.json \
    --attach-image --questions 1"
export GENERATE_FLAGS=${GENERATE_FLAGS:---prices playground/demo/prices.toml --budget 20}
# In a world of a few hundred wordings every question is also the benchmark's; the images are never the same.
export CLEAN_FLAGS="--eval-root $data/none ${CLEAN_FLAGS:-}"
export MIX_FLAGS="--modes mc,mcp --replay 1.5" RECORDS=1400 INCREMENTAL=1
export TRAIN_FLAGS="--bf16 False --gradient_checkpointing False --dataloader_num_workers 0 --report_to none --logging_steps 20 \
    --lora_r 16 --lora_alpha 32 --lora_dropout 0 --learning_rate 2e-3 --mm_projector_lr 1e-3"
"$PYTHON" playground/demo/provider.py --data "$data" --seed "$SEED" --mistakes "${MISTAKES:-0.1}" -- \
    bash scripts/v1_5/dataengine_round.sh
