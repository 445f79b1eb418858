#!/usr/bin/env bash
# Stage 1: train only the projector, on captions.
#
# Usage: bash scripts/v1_5/pretrain.sh [FLAG...]
#   e.g. MODEL=lmsys/vicuna-7b-v1.5 OUTPUT_DIR=./checkpoints/llava-v1.5-7b-pretrain bash scripts/v1_5/pretrain.sh
# Settings: see _train.sh. Flags given here win, e.g. --learning_rate 5e-4 --report_to wandb.
# Writes: OUTPUT_DIR with mm_projector.bin, config.json and trainer_state.json.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_train.sh"

train 2 \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --version plain \
    --data_path "${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}" \
    --mm_projector_type mlp2x_gelu \
    --tune_mm_mlp_adapter True \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-pretrain}" \
    --per_device_train_batch_size "${PER_DEVICE_BATCH:-32}" \
    --save_steps 24000 \
    --learning_rate 1e-3 \
    "$@"
