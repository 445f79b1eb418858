#!/usr/bin/env bash
# Fine-tune a finished LLaVA model (its projector included) on the data of one task.
#
# Usage: DATA_PATH=task.json IMAGE_FOLDER=images bash scripts/v1_5/finetune_task.sh [FLAG...]
# Settings: see _train.sh; PROJECTOR is not used. Flags given here win, e.g. --learning_rate 1e-5.
# Writes: OUTPUT_DIR with the whole model, its tokenizer and trainer_state.json.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_train.sh"

train 3 \
    --model_name_or_path "${MODEL:-liuhaotian/llava-v1.5-13b}" \
    --version v1 \
    --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data}" \
    --mm_projector_type mlp2x_gelu \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-task}" \
    --per_device_train_batch_size "${PER_DEVICE_BATCH:-16}" \
    --save_steps 50000 \
    --learning_rate 2e-5 \
    "$@"
