#!/usr/bin/env bash
# sqa.sh for a LoRA adapter.
#
#   bash scripts/v1_5/eval/sqa_lora.sh MODEL_PATH MODEL_NAME
#   bash scripts/v1_5/eval/sqa_lora.sh ./checkpoints/llava-v1.5-7b-lora llava-v1.5-7b-lora
#
# Settings: MODEL_BASE, what the adapter is applied to (default lmsys/vicuna-7b-v1.5; empty: what
# adapter_config.json names), and those of _common.sh. Writes what sqa.sh writes.
set -euo pipefail
export MODEL_BASE=${MODEL_BASE-lmsys/vicuna-7b-v1.5}
exec bash "$(dirname "${BASH_SOURCE[0]}")/sqa.sh" "${1:?usage: sqa_lora.sh MODEL_PATH MODEL_NAME}" "${2:?usage: sqa_lora.sh MODEL_PATH MODEL_NAME}"
