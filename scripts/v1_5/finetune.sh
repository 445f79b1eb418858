#!/usr/bin/env bash
# Stage 2: fine-tune the whole language model and the projector on the 665k instruction mix.
#
# Usage: bash scripts/v1_5/finetune.sh [FLAG...]
# Settings: see _train.sh. Flags given here win, e.g. --num_train_epochs 2 --report_to wandb.
# Starts from ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin if it exists, else from the published one.
# Writes: OUTPUT_DIR with the whole model, its tokenizer and trainer_state.json.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_train.sh"

train 3 \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --version v1 \
    --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data}" \
    --pretrain_mm_mlp_adapter "${PROJECTOR-$(projector 13b)}" \
    --mm_projector_type mlp2x_gelu \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b}" \
    --per_device_train_batch_size "${PER_DEVICE_BATCH:-16}" \
    --save_steps 50000 \
    --learning_rate 2e-5 \
    "$@"
