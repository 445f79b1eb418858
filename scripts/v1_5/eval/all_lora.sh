#!/usr/bin/env bash
# all.sh for a LoRA adapter.
#
#   bash scripts/v1_5/eval/all_lora.sh MODEL_PATH MODEL_NAME [BENCHMARK...]
#   bash scripts/v1_5/eval/all_lora.sh ./checkpoints/llava-v1.5-7b-lora llava-v1.5-7b-lora
#
# Settings: MODEL_BASE, what the adapter is applied to (default lmsys/vicuna-7b-v1.5; empty: what
# adapter_config.json names), and those of _common.sh. Writes what all.sh writes.
set -euo pipefail
usage='usage: all_lora.sh MODEL_PATH MODEL_NAME [BENCHMARK...]'
export MODEL_BASE=${MODEL_BASE-lmsys/vicuna-7b-v1.5}
exec bash "$(dirname "${BASH_SOURCE[0]}")/all.sh" "${1:?$usage}" "${2:?$usage}" "${@:3}"
