#!/usr/bin/env bash
# MLLM-DataEngine: LoRA fine-tuning of the 7b model on the 665k mix with the data engine's samples added.
#
# Usage: bash scripts/v1_5/finetune_lora_dataengine.sh [FLAG...]
#   e.g. NPROC=4 GRADIENT_ACCUMULATION=2 bash scripts/v1_5/finetune_lora_dataengine.sh --report_to wandb
# Settings: see _train.sh. Flags given here win over all below.
# Starts from ./checkpoints/llava-v1.5-7b-pretrain/mm_projector.bin if it exists, else from the published one.
# Writes: OUTPUT_DIR with the adapter, non_lora_trainables.bin, config.json and trainer_state.json.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_train.sh"

train 3 \
    --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 \
    --model_name_or_path "${MODEL:-lmsys/vicuna-7b-v1.5}" \
    --version v1 \
    --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k_dataengine.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data}" \
    --pretrain_mm_mlp_adapter "${PROJECTOR-$(projector 7b)}" \
    --mm_projector_type mlp2x_gelu \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-7b-lora-dataengine}" \
    --per_device_train_batch_size "${PER_DEVICE_BATCH:-16}" \
    --save_steps 50000 \
    --learning_rate 1e-4 \
    "$@"
